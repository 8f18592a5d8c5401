from tests.clients.fixtures import network, visit_in_chromium

__all__ = ["network", "visit_in_chromium"]
