from tests.clients.fixtures import network, visit, visit_in_chromium, visit_in_node

__all__ = ["network", "visit", "visit_in_chromium", "visit_in_node"]
