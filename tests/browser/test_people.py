"""What people see of each other in the chat demo: three of them, one on two devices."""

from __future__ import annotations

import time

import pytest
from playwright.async_api import Locator, expect

from tests.browser.guests import LOST, Guest
from tests.support.browser import PageFactory
from tests.support.server import LiveServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(demo: LiveServer) -> str:
    return demo.http("/")


async def another_device(guest: Guest, pages: PageFactory) -> Guest:
    """The same person in another browser, by the link that the page gives."""
    await guest.page.get_by_role("button", name="Open on another device").click()
    link = await guest.page.get_by_label("Link").input_value()
    await guest.page.get_by_role("button", name="Done").click()
    other = Guest(await pages(link), guest.name)
    await other.is_connected()
    # The link is a key: it does not stay in the address bar.
    assert "#" not in other.page.url
    return other


def entry(guest: Guest, name: str) -> Locator:
    """The conversation with this person, in the list."""
    return guest.page.locator("#directs .entry", has_text=name)


async def test_private_messages_on_two_devices(url: str, page: PageFactory) -> None:
    ann = await Guest.enter(page, url, "Ann")
    phone = await another_device(ann, page)
    bob = await Guest.enter(page, url, "Bob")
    # Two devices, one person.
    for guest in (ann, phone, bob):
        await guest.members("Ann", "Bob")

    await bob.page.get_by_role("button", name="Ann").click()
    await bob.say("one", "two")
    for device in (ann, phone):
        await expect(entry(device, "Bob").locator(".badge")).to_have_text("2 unread")
    # Read on one device is read on the other.
    await entry(ann, "Bob").click()
    await ann.sees("one", "two")
    for device in (ann, phone):
        await expect(entry(device, "Bob").locator(".badge")).to_be_hidden()

    # What one device sends, the other one shows, as one's own.
    await ann.say("three")
    await entry(phone, "Bob").click()
    for device in (ann, phone, bob):
        await device.sees("one", "two", "three")
    await expect(phone.page.locator("#messages .mine .text")).to_have_text(["three"])
    await expect(entry(phone, "Bob").locator(".badge")).to_be_hidden()


async def test_who_was_away_finds_what_was_sent(url: str, page: PageFactory) -> None:
    page.expect_error(LOST)
    ann = await Guest.enter(page, url, "Ann")
    bob = await Guest.enter(page, url, "Bob")
    cy = await Guest.enter(page, url, "Cy")
    await bob.page.goto("about:blank")
    for name, sender in (("Ann", ann), ("Cy", cy)):
        await sender.page.get_by_role("button", name="Bob").click()
        await sender.say(f"from {name}", f"again from {name}")
    await bob.page.goto(url)
    await bob.is_connected()
    for name in ("Ann", "Cy"):
        await expect(entry(bob, name).locator(".badge")).to_have_text("2 unread")
        await entry(bob, name).click()
        await bob.sees(f"from {name}", f"again from {name}")
        await expect(entry(bob, name).locator(".badge")).to_be_hidden()
    # It has all of them now: none comes as new again.
    await bob.page.reload()
    await bob.is_connected()
    await ann.say("news")
    await expect(entry(bob, "Ann").locator(".badge")).to_have_text("1 unread")


async def test_dots_go_from_online_to_away_to_offline(url: str, page: PageFactory) -> None:
    ann = await Guest.enter(page, url, "Ann")
    phone = await another_device(ann, page)
    bob = await Guest.enter(page, url, "Bob")
    cy = await Guest.enter(page, url, "Cy")
    for guest in (bob, cy):
        await guest.page.get_by_role("button", name="Ann").click()
        await expect(entry(guest, "Ann").locator(".dot.online")).to_have_count(1)
        await expect(guest.page.locator("#subtitle")).to_have_text("online")
    await ann.page.get_by_label("Your status").select_option("away")
    for guest in (bob, cy):
        await expect(entry(guest, "Ann").locator(".dot.away")).to_have_count(1)
        await expect(guest.page.locator("#subtitle")).to_have_text("away")
    await expect(phone.page.get_by_label("Your status")).to_have_value("away")
    # One device less is still somebody there; without the last one nobody is.
    await ann.page.close()
    await phone.open_room("Random")
    for guest in (bob, cy):
        await expect(entry(guest, "Ann").locator(".dot.away")).to_have_count(1)
    await phone.page.close()
    for guest in (bob, cy):
        await expect(entry(guest, "Ann").locator(".dot.offline")).to_have_count(1, timeout=20_000)
        await expect(guest.page.locator("#subtitle")).to_have_text("offline")


async def test_typing_ends_by_itself(url: str, page: PageFactory) -> None:
    ann = await Guest.enter(page, url, "Ann")
    bob = await Guest.enter(page, url, "Bob")
    cy = await Guest.enter(page, url, "Cy")
    for guest in (bob, cy):
        await guest.watches_typing()
    began = time.monotonic()
    await ann.page.locator("#field").fill("let me thi")
    for guest in (bob, cy):
        await guest.saw_typing("Ann is writing…", "")
    # Ann's words still stand there unsent: it was the time that ended it, the server's 3 s.
    assert time.monotonic() - began >= 3
    await expect(ann.page.locator("#field")).to_have_value("let me thi")


async def test_edits_deletions_and_errors(url: str, page: PageFactory) -> None:
    ann = await Guest.enter(page, url, "Ann")
    bob = await Guest.enter(page, url, "Bob")
    cy = await Guest.enter(page, url, "Cy")
    await ann.say("wrogn", "not for you")
    await bob.sees("wrogn", "not for you")
    first = ann.page.locator("#messages .message", has_text="wrogn")
    await first.get_by_role("button", name="Edit this message").click()
    await ann.page.locator("#field").fill("right")
    await ann.page.keyboard.press("Enter")
    second = ann.page.locator("#messages .message", has_text="not for you")
    await second.get_by_role("button", name="Delete this message").click()
    await ann.page.get_by_role("button", name="Delete", exact=True).click()
    for guest in (ann, bob, cy):
        await guest.sees("right (edited)", "Message deleted")
    for guest in (ann, bob, cy):
        await guest.page.reload()
        await guest.is_connected()
        await guest.sees("right (edited)", "Message deleted")

    # The field stops at the limit; a page that does not is told in words, in private as well.
    await ann.page.get_by_role("button", name="Bob").click()
    await ann.page.locator("#field").evaluate("field => field.removeAttribute('maxlength')")
    await ann.type("x" * 10_001)
    failed = ann.page.locator("#messages .failed")
    await expect(failed.locator(".state")).to_contain_text("Not sent. It is too long.")
    await failed.get_by_role("button", name="Discard").click()
    await ann.say("short")
    await expect(entry(bob, "Ann").locator(".badge")).to_have_text("1 unread")
