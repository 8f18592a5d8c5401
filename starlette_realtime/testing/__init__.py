"""What tests need: contract suites for stores of one's own (`testing.contracts`)."""
