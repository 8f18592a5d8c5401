"""The chat demo in Chromium, on a real server: what two people and their networks do to it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread
from playwright.async_api import expect

from tests.browser.guests import LOST, PHONE, Guest
from tests.support.browser import PageFactory
from tests.support.proxy import Proxy
from tests.support.server import FAST, LiveServer, ServerProcess
from tests.support.wsclient import NativeClient

pytestmark = pytest.mark.anyio

SECRET = {"CHAT_SECRET": "a secret for the tests, and for them alone"}
ROOM = "chat/general"


@pytest.fixture
async def process(serve_process: Callable[..., ServerProcess]) -> ServerProcess:
    """The demo in a process that can be killed; by their secret, guests outlive a restart."""
    return await to_thread.run_sync(
        lambda: serve_process("examples.chat.app:app", ws=FAST, env=SECRET)
    )


async def two(page: PageFactory, url: str) -> tuple[Guest, Guest]:
    return await Guest.enter(page, url, "Ann"), await Guest.enter(page, url, "Bob")


async def test_two_people_see_each_other_and_what_they_say(
    demo: LiveServer, page: PageFactory
) -> None:
    ann, bob = await two(page, demo.http("/"))
    for guest in (ann, bob):
        await guest.members("Ann", "Bob")
        await expect(guest.page.locator("#subtitle")).to_have_text("2 people here")
    await ann.say("hello", "are you there?")
    await bob.say("yes\nin two lines")
    for guest in (ann, bob):
        await guest.sees("hello", "are you there?", "yes\nin two lines")
        await guest.has_no_pending()
    # One name for what one person says in one go.
    names = bob.page.locator("#messages .meta:not(.hidden-text) .author")
    await expect(names).to_have_text(["Ann", "You"])
    await expect(bob.page.locator("#messages .mine .text")).to_have_count(1)
    await expect(bob.page.locator("#messages .meta:not(.hidden-text) time")).to_have_count(2)

    await bob.page.close()
    await ann.members("Ann")


async def test_markup_is_shown_and_not_obeyed(demo: LiveServer, page: PageFactory) -> None:
    name = "<b>Ann</b>"
    texts = [
        "<img src=x onerror=\"document.body.id = 'hacked'\">",
        "<script>document.body.id = 'hacked'</script>",
        "javascript:alert(1) https://example.com/a?b=<i>",
    ]
    ann = await Guest.enter(page, demo.http("/"), name)
    bob = await Guest.enter(page, demo.http("/"), "Bob")
    await ann.say(*texts)
    await ann.page.locator("#new-room").click()
    await ann.page.get_by_label("Title").fill("<u>a</u> b")
    await ann.page.keyboard.press("Enter")
    await expect(bob.page.locator("#rooms")).to_contain_text("<u>a</u> b")
    for guest in (ann, bob):
        assert await guest.page.evaluate("document.body.id") == ""
        assert await guest.page.locator("#chat b, #chat u, #chat i, #chat img").count() == 0
    await bob.sees(*texts)
    await expect(bob.page.locator("#members .name").first).to_have_text(name)
    links = await bob.page.locator("#messages a").evaluate_all("all => all.map(a => a.href)")
    assert links == ["https://example.com/a?b="]


async def test_history_is_there_for_who_comes_later_and_after_a_reload(
    demo: LiveServer, page: PageFactory
) -> None:
    ann = await Guest.enter(page, demo.http("/"), "Ann")
    await ann.say("one", "two")
    bob = await Guest.enter(page, demo.http("/"), "Bob")
    await bob.sees("one", "two")
    await ann.page.reload()
    await ann.is_connected()
    await ann.sees("one", "two")
    # The same person as before: these are still her own.
    await expect(ann.page.locator("#messages .mine")).to_have_count(2)


async def test_killed_server_comes_back_without_its_history(
    process: ServerProcess, page: PageFactory
) -> None:
    page.expect_error(LOST)
    ann, bob = await two(page, process.http("/"))
    await ann.say("before")
    await bob.sees("before")
    await to_thread.run_sync(process.kill)
    for guest in (ann, bob):
        await expect(guest.page.locator("#link-word")).to_have_text("Reconnecting…")
        await expect(guest.page.locator("#banner-text")).to_contain_text("Connection lost.")
    written = {f"ann {n}" for n in range(3)} | {f"bob {n}" for n in range(3)}
    for n in range(3):
        await ann.type(f"ann {n}")
        await bob.type(f"bob {n}")
    await expect(ann.page.locator("#messages .sending")).to_have_count(3)
    await expect(ann.page.locator("#messages .sending .state").first).to_have_text("Sending…")
    await to_thread.run_sync(process.start)
    for guest in (ann, bob):
        await guest.is_connected()
        await guest.has_no_pending()
        # What the memory lost is gone from the pages, which say so; what waited is there, once.
        await guest.sees_all(written)
        await expect(guest.page.locator("#notice")).to_contain_text("lost its history")
        await expect(guest.page.locator("#banner")).to_be_hidden()
        await guest.members("Ann", "Bob")
    assert await ann.texts() == await bob.texts()
    await bob.say("and on it goes")
    await expect(ann.page.locator("#messages .text").last).to_have_text("and on it goes")
    assert len(await ann.texts()) == len(written) + 1


async def test_server_that_forgot_its_guests_lets_them_in_anew(
    serve_process: Callable[..., ServerProcess], page: PageFactory
) -> None:
    # Without a secret of one's own, tokens do not outlive the server.
    page.expect_error(LOST)
    server: ServerProcess = await to_thread.run_sync(lambda: serve_process("examples.chat.app:app"))
    ann, bob = await two(page, server.http("/"))
    await ann.page.locator("#new-room").click()
    await ann.page.get_by_label("Title").fill("Plans")
    await ann.page.keyboard.press("Enter")
    await bob.open_room("Plans")
    await to_thread.run_sync(server.kill)
    await expect(ann.page.locator("#link-word")).to_have_text("Reconnecting…")
    await to_thread.run_sync(server.start)
    for guest in (ann, bob):
        await guest.is_connected()
        await guest.members("Ann", "Bob")
    await ann.say("still here")
    await bob.sees("still here")
    # A room in which people are is found by others, though the server had forgotten it.
    cara = await Guest.enter(page, server.http("/"), "Cara")
    await cara.open_room("Plans")
    await cara.sees("still here")


async def test_nothing_is_missing_or_double_after_the_network_was_away(
    demo: LiveServer, page: PageFactory
) -> None:
    page.expect_error(LOST)
    async with Proxy(demo.port) as proxy:
        ann = await Guest.enter(page, demo.http("/"), "Ann")
        bob = await Guest.enter(page, proxy.http("/"), "Bob")
        await ann.say("first")
        await bob.sees("first")
        said = ["first"]
        for round_ in range(2):
            await bob.page.context.set_offline(True)
            # Chromium leaves open sockets alone: what a real network loses is cut here.
            proxy.cut_all()
            await expect(bob.page.locator("#link-word")).to_have_text("Offline")
            await expect(bob.page.locator("#banner-text")).to_contain_text("You are offline.")
            missed = [f"missed {round_}.{n}" for n in range(5)]
            await ann.say(*missed)
            await bob.type(f"away {round_}")
            await expect(bob.page.locator("#messages .sending")).to_have_count(1)
            await bob.page.context.set_offline(False)
            await bob.is_connected()
            await bob.has_no_pending()
            said += [*missed, f"away {round_}"]
            for guest in (ann, bob):
                await guest.sees(*said)
        await expect(bob.page.locator("#notice")).to_be_hidden()


async def test_a_message_whose_ack_was_lost_appears_once(
    demo: LiveServer, page: PageFactory
) -> None:
    page.expect_error(LOST)
    async with Proxy(demo.port) as proxy:
        ann = await Guest.enter(page, demo.http("/"), "Ann")
        bob = await Guest.enter(page, proxy.http("/"), "Bob")
        # The server hears Bob, and Bob does not hear the server.
        proxy.stall(to_server=False)
        await bob.type("did you get this?")
        await ann.sees("did you get this?")
        await expect(bob.page.locator("#messages .sending")).to_have_count(1)
        proxy.cut_all()
        proxy.resume()
        await bob.has_no_pending()
        for guest in (ann, bob):
            await guest.sees("did you get this?")


async def test_earlier_messages_are_loaded_on_scrolling_up(
    demo: LiveServer, page: PageFactory
) -> None:
    everything = [f"message {n}" for n in range(160)]
    async with NativeClient.open(demo.ws("/realtime/ws"), token="Cara") as cara:
        await cara.request("join", ROOM)
        for text in everything:
            await cara.request("message", ROOM, {"content": text})
    ann = await Guest.enter(page, demo.http("/"), "Ann")
    await ann.sees(*everything[-50:])
    log = ann.page.locator("#log")
    at_end = "log => log.scrollHeight - log.scrollTop - log.clientHeight < 2"
    assert await log.evaluate(at_end)

    shown = 50
    for expected in (100, 160):
        # What is read stays where it is while more comes in above it.
        top = ann.page.locator("#messages .text", has_text=everything[-shown]).first
        await log.evaluate("log => log.scrollTo(0, 0)")
        await ann.sees(*everything[-expected:])
        await expect(top).to_be_in_viewport()
        shown = expected
    await expect(ann.page.locator("#older")).to_be_hidden()

    # A message that comes meanwhile does not tear the reader away.
    bob = await Guest.enter(page, demo.http("/"), "Bob")
    await log.evaluate("log => log.scrollTo(0, 0)")
    await bob.say("news")
    await expect(ann.page.locator("#jump")).to_have_text(re.compile("1 new message"))
    assert await log.evaluate("log => log.scrollTop") < 200
    await ann.page.locator("#jump").click()
    await expect(ann.page.locator("#messages .text").last).to_be_in_viewport()
    await expect(ann.page.locator("#jump")).to_be_hidden()


async def test_rooms_are_made_found_left_and_count_what_is_unread(
    demo: LiveServer, page: PageFactory
) -> None:
    ann, bob = await two(page, demo.http("/"))
    await ann.page.locator("#new-room").click()
    await ann.page.get_by_label("Title").fill("!!!")
    await ann.page.keyboard.press("Enter")
    await expect(ann.page.locator("#room-problem")).to_contain_text("letters or digits")
    await ann.page.get_by_label("Title").fill("Release  plans")
    await ann.page.keyboard.press("Enter")
    await expect(ann.page.locator("#title")).to_have_text("# Release plans")
    await bob.open_room("Release plans")
    await ann.members("Ann", "Bob")
    await bob.say("here")
    await ann.open_room("General")
    await bob.say("and there")
    entry = ann.page.locator("#rooms .entry", has_text="Release plans")
    await expect(entry.locator(".badge")).to_have_text("1 unread")
    await expect(ann.page).to_have_title(re.compile(r"^\(1\) General"))
    await entry.click()
    await ann.sees("here", "and there")
    await expect(entry.locator(".badge")).to_be_hidden()
    await bob.page.get_by_role("button", name="Leave", exact=True).click()
    await expect(bob.page.locator("#title")).to_have_text("# General")
    await ann.members("Ann")


async def test_a_refused_message_says_why_and_may_be_tried_again(
    demo: LiveServer, page: PageFactory
) -> None:
    ann = await Guest.enter(page, demo.http("/"), "Ann")
    await ann.page.locator("#field").evaluate("field => field.removeAttribute('maxlength')")
    await ann.type("x" * 10_001)
    failed = ann.page.locator("#messages .failed")
    await expect(failed.locator(".state")).to_contain_text("Not sent. It is too long.")
    await failed.get_by_role("button", name="Try again").click()
    await expect(failed.locator(".state")).to_contain_text("Not sent.")
    await failed.get_by_role("button", name="Discard").click()
    await ann.sees()
    await expect(ann.page.locator("#field")).to_be_focused()
    await ann.say("short")
    await ann.sees("short")


async def test_names_that_are_none(demo: LiveServer, page: PageFactory) -> None:
    page.expect_error("status of 400")
    opened = await page(demo.http("/"))
    await opened.get_by_label("Your name").fill("   ")
    await opened.keyboard.press("Enter")
    await expect(opened.get_by_role("alert").first).to_have_text("A name has 1 to 40 characters.")
    await expect(opened.get_by_label("Your name")).to_be_focused()


async def test_on_a_phone(demo: LiveServer, page: PageFactory) -> None:
    phone: dict[str, Any] = {"viewport": PHONE, "is_mobile": True, "has_touch": True}
    opened = await page(demo.http("/"), **phone)
    await Guest(opened, "nobody").width_fits()
    ann = await Guest.enter(page, demo.http("/"), "Ann", **phone)
    bob = await Guest.enter(page, demo.http("/"), "Bob " + "o" * 36)
    await bob.say("word" * 200, "https://example.com/" + "path/" * 60)
    await expect(ann.page.locator("#messages .text")).to_have_count(2)
    await ann.width_fits()
    sidebar, members = ann.page.locator("#sidebar"), ann.page.locator("#members-panel")
    await expect(sidebar).to_be_hidden()
    await expect(members).to_be_hidden()

    await ann.page.get_by_role("button", name="Conversations", exact=True).tap()
    await expect(sidebar).to_be_visible()
    await ann.width_fits()
    await ann.page.get_by_role("button", name="Random").tap()
    await expect(sidebar).to_be_hidden()
    await expect(ann.page.locator("#title")).to_have_text("# Random")
    await bob.say("in the other room")
    await expect(ann.page.locator("#elsewhere")).to_have_text("1 unread")

    await ann.page.locator("#members-open").tap()
    await expect(members).to_be_visible()
    await ann.width_fits()
    await ann.page.locator("#members-close").tap()
    await expect(members).to_be_hidden()
    await expect(ann.page.locator("#send")).to_be_in_viewport()

    # A button that is not shown is not touched; a tap on the message shows it.
    await ann.say("mine")
    trash = ann.page.get_by_role("button", name="Delete this message")
    box = await trash.bounding_box()
    assert box is not None
    await ann.page.touchscreen.tap(box["x"] + 5, box["y"] + 5)
    await expect(ann.page.locator("#messages .message.open")).to_have_count(1)
    await expect(ann.page.get_by_role("dialog")).to_have_count(0)
    await trash.tap()
    await expect(ann.page.get_by_role("dialog")).to_have_count(1)


async def test_with_the_keyboard_alone(demo: LiveServer, page: PageFactory) -> None:
    opened = await page(demo.http("/"), viewport=PHONE)
    keyboard = opened.keyboard
    await expect(opened.get_by_label("Your name")).to_be_focused()
    await keyboard.type("Ann")
    await keyboard.press("Enter")
    ann = Guest(opened, "Ann")
    await ann.is_connected()
    await expect(opened.get_by_label("Message #General")).to_be_focused()
    await keyboard.type("first line")
    await keyboard.press("Shift+Enter")
    await keyboard.type("second line")
    await keyboard.press("Enter")
    await ann.sees("first line\nsecond line")
    await expect(opened.get_by_label("Message #General")).to_be_focused()

    # The drawer takes the focus, keeps it off what lies behind, and gives it back.
    await opened.get_by_role("button", name="Conversations", exact=True).focus()
    await keyboard.press("Enter")
    await expect(opened.locator("#sidebar")).to_be_focused()
    assert await opened.locator("#conversation").evaluate("main => main.inert")
    await keyboard.press("Escape")
    await expect(opened.get_by_role("button", name="Conversations", exact=True)).to_be_focused()
    await keyboard.press("Enter")
    await opened.get_by_role("button", name="New room").focus()
    await keyboard.press("Enter")
    await expect(opened.get_by_label("Title")).to_be_focused()
    await keyboard.press("Escape")
    await expect(opened.get_by_role("button", name="New room")).to_be_focused()
    await opened.get_by_role("button", name="Random").focus()
    await keyboard.press("Enter")
    await expect(opened.get_by_role("heading", name="# Random")).to_be_focused()

    # The log scrolls by the keyboard, and the link at the top leads to the field.
    await expect(opened.get_by_role("log")).to_have_attribute("tabindex", "0")
    await opened.get_by_role("link", name="Skip to the message field").focus()
    await keyboard.press("Enter")
    await expect(opened.get_by_label("Message #Random")).to_be_focused()


async def test_for_a_screen_reader(demo: LiveServer, page: PageFactory) -> None:
    ann, bob = await two(page, demo.http("/"))
    announcer = ann.page.locator("[aria-live=polite]")
    await bob.say("hello there", "again")
    # New messages are read out once each, by author, and history is not.
    await expect(announcer.locator("p")).to_have_text(["Bob: hello there", "Bob: again"])
    await expect(bob.page.locator("[aria-live=polite] p")).to_have_count(0)
    # Each message has its author, also where the eye does not need it.
    items = ann.page.locator("#messages .message")
    await expect(items.nth(1).locator(".author")).to_have_text("Bob")
    for role, name in [
        ("log", "# General"),
        ("main", "# General"),
        ("navigation", "Rooms and direct messages"),
        ("complementary", "Conversations"),
        ("complementary", "Members"),
        ("textbox", "Message #General"),
        ("button", "Send"),
        ("button", "New room"),
        ("button", "Leave the chat"),
    ]:
        await expect(ann.page.get_by_role(role, name=name, exact=True)).to_have_count(1)  # type: ignore[arg-type]
    await expect(ann.page.get_by_role("button", name="General")).to_have_attribute(
        "aria-current", "true"
    )
    nameless = await ann.page.evaluate(
        """[...document.querySelectorAll("button, input, textarea, select")]
           .filter((e) => !e.closest("[hidden]") && !e.textContent.trim() && !e.labels?.length
                          && !e.ariaLabel).map((e) => e.outerHTML)"""
    )
    assert nameless == []


async def test_calm_where_motion_is_not_wanted(demo: LiveServer, page: PageFactory) -> None:
    ann = await Guest.enter(page, demo.http("/"), "Ann", reduced_motion="reduce", viewport=PHONE)
    await ann.page.get_by_role("button", name="Conversations", exact=True).click()
    assert await ann.page.locator("#sidebar").evaluate(
        "e => getComputedStyle(e).transitionDuration"
    ) in {
        "0s",
        "",
    }


# Private messages, presence, typing, editing


async def test_typing_is_shown_and_ends(demo: LiveServer, page: PageFactory) -> None:
    ann, bob = await two(page, demo.http("/"))
    for guest in (ann, bob):
        await guest.watches_typing()
    await ann.page.locator("#field").fill("hel")
    await bob.saw_typing("Ann is writing…")
    await ann.page.locator("#field").fill("")
    await bob.saw_typing("Ann is writing…", "")
    await ann.page.locator("#field").fill("hello")
    await bob.saw_typing("Ann is writing…", "", "Ann is writing…")
    await ann.page.keyboard.press("Enter")
    await bob.sees("hello")
    await bob.saw_typing("Ann is writing…", "", "Ann is writing…", "")
    await ann.saw_typing()


async def test_typing_is_said_however_new_the_page_is(demo: LiveServer, page: PageFactory) -> None:
    ann, bob = await two(page, demo.http("/"))
    await bob.watches_typing()
    await ann.page.evaluate("performance.now = () => 500")
    await ann.page.locator("#field").fill("hel")
    await bob.saw_typing("Ann is writing…")


async def test_own_messages_are_edited_and_deleted(demo: LiveServer, page: PageFactory) -> None:
    ann, bob = await two(page, demo.http("/"))
    await ann.say("teh first", "the second")
    await bob.sees("teh first", "the second")
    first = ann.page.locator("#messages .message", has_text="first")
    await first.get_by_role("button", name="Edit this message").click()
    field = ann.page.locator("#field")
    await expect(field).to_have_value("teh first")
    await field.fill("the first")
    await field.press("Enter")
    for guest in (ann, bob):
        await guest.sees("the first (edited)", "the second")
    # The last one, by keyboard; and back out of it.
    await field.press("ArrowUp")
    await expect(field).to_have_value("the second")
    await field.press("Escape")
    await expect(field).to_have_value("")
    # What was being written waits meanwhile.
    await field.fill("unsent")
    await first.get_by_role("button", name="Edit this message").click()
    await expect(field).to_have_value("the first")
    await field.press("Escape")
    await expect(field).to_have_value("unsent")
    await field.fill("")
    await field.evaluate("field => field.removeAttribute('maxlength')")
    # A refusal puts back what was there, and says why.
    await field.press("ArrowUp")
    await field.fill("x" * 10_001)
    await field.press("Enter")
    await expect(ann.page.locator("#trouble")).to_have_text(
        "The message was not changed. It is too long."
    )
    await ann.sees("the first (edited)", "the second")

    await first.get_by_role("button", name="Delete this message").click()
    await expect(ann.page.get_by_role("dialog")).to_contain_text("the first")
    await ann.page.get_by_role("button", name="Keep it").click()
    await first.get_by_role("button", name="Delete this message").click()
    await ann.page.get_by_role("button", name="Delete", exact=True).click()
    for guest in (ann, bob):
        await guest.sees("Message deleted", "the second")
    assert await bob.page.get_by_role("button", name="Edit this message").count() == 0


async def test_private_messages_reach_one_person(demo: LiveServer, page: PageFactory) -> None:
    ann, bob = await two(page, demo.http("/"))
    cara = await Guest.enter(page, demo.http("/"), "Cara")
    await ann.page.get_by_role("button", name="Bob").click()
    await expect(ann.page.locator("#title")).to_have_text("Bob")
    await ann.say("just you")
    await ann.sees("just you")
    entry = bob.page.locator("#directs .entry", has_text="Ann")
    await expect(entry.locator(".badge")).to_have_text("1 unread")
    # A reload takes neither the conversation nor what is new in it.
    await bob.page.reload()
    await bob.is_connected()
    await expect(entry.locator(".badge")).to_have_text("1 unread")
    read = ann.page.locator("#messages .state")
    await expect(read).to_have_count(0)
    await entry.click()
    await bob.sees("just you")
    await expect(read).to_have_text(["Read"])
    await bob.page.reload()
    await expect(bob.page.locator("#title")).to_have_text("Ann")
    await bob.sees("just you")
    await expect(entry.locator(".badge")).to_be_hidden()
    await bob.say("and you")
    await ann.sees("just you", "and you")
    await expect(cara.page.locator("#direct")).to_be_hidden()


async def test_presence_shows_in_dots_and_words(demo: LiveServer, page: PageFactory) -> None:
    ann, bob = await two(page, demo.http("/"))
    await ann.page.get_by_label("Your status").select_option("busy")
    person = bob.page.locator("#members li", has_text="Ann")
    await expect(person).to_contain_text("busy")
    await expect(person.locator(".dot.busy")).to_have_count(1)


async def test_private_messages_wait_for_who_is_away(demo: LiveServer, page: PageFactory) -> None:
    page.expect_error(LOST)
    async with Proxy(demo.port) as proxy:
        ann = await Guest.enter(page, demo.http("/"), "Ann")
        bob = await Guest.enter(page, proxy.http("/"), "Bob")
        await ann.page.get_by_role("button", name="Bob").click()
        await ann.say("first")
        await bob.page.locator("#directs .entry", has_text="Ann").click()
        await bob.sees("first")
        await bob.page.context.set_offline(True)
        proxy.cut_all()
        await expect(bob.page.locator("#link-word")).to_have_text("Offline")
        await ann.say("second", "third")
        await bob.type("meanwhile")
        await bob.page.context.set_offline(False)
        await bob.has_no_pending()
        await bob.sees_all({"first", "second", "third", "meanwhile"})
        await ann.sees_all({"first", "second", "third", "meanwhile"})
        # After a reload the page knows nothing, and the server everything.
        await bob.page.reload()
        await bob.is_connected()
        await bob.page.get_by_role("button", name="Ann").last.click()
        await bob.sees("first", "second", "third", "meanwhile")


async def test_what_the_server_does_not_have_is_not_offered(
    demo: LiveServer, page: PageFactory
) -> None:
    async with NativeClient.open(demo.ws("/realtime/ws"), token="Cara") as cara:
        await cara.request("join", ROOM)
        ann = await Guest.enter(page, demo.http("/"), "Ann")
        await ann.say("mine")
        optional = [
            ann.page.get_by_role("button", name="Edit this message"),
            ann.page.get_by_role("button", name="Delete this message"),
            ann.page.get_by_role("button", name="Cara"),
            ann.page.get_by_label("Your status"),
        ]
        for control in optional:
            await expect(control).to_have_count(1)
            await expect(control).to_be_enabled()
        await ann.page.evaluate(
            "sessionStorage.chat = JSON.stringify({...JSON.parse(sessionStorage.chat), events: []})"
        )
        await ann.page.reload()
        await ann.is_connected()
        await ann.sees("mine")
        for control in optional[:3]:
            await expect(control).to_have_count(0)
        await expect(optional[3]).to_be_hidden()
        await ann.page.locator("#field").press("ArrowUp")
        await ann.say("yours")
        await ann.sees("mine", "yours")
        await expect(ann.page.locator("#trouble")).to_have_text("")


# The sheet


def luminance(color: str) -> float:
    """WCAG 2.2, "relative luminance"."""
    parts = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


PAIRS = [
    "text/ground",
    "text/side",
    "text/raised",
    "text/hover",
    "text/bubble",
    "muted/ground",
    "muted/side",
    "muted/hover",
    "muted/raised",
    "muted/bubble",
    "accent-strong/accent-soft",
    "text/accent-soft",
    "on-accent/accent",
    "on-accent/accent-strong",
    "on-mine/mine",
    "wait-text/wait-ground",
    "bad-text/bad-ground",
    "bad/ground",
    "bad/raised",
]


def test_contrast_is_enough_in_both_schemes() -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1 for text."""
    sheet = (Path(__file__).parents[2] / "examples/chat/static/chat.css").read_text()
    schemes = sheet.split("prefers-color-scheme: dark")
    light = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", schemes[0]))
    dark = light | dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", schemes[1]))
    for scheme in (light, dark):
        for pair in PAIRS:
            text, ground = pair.split("/")
            found = contrast(scheme[text], scheme[ground])
            assert found >= 4.5, f"{pair}: {found:.2f}"
    tints = re.findall(r"\.tint-\d \{ background: (#\w{6}); color: (#\w{6}); \}", sheet)
    assert len(tints) == 16
    assert all(contrast(*tint) >= 4.5 for tint in tints)
