"""The servers under test, each as small and as idiomatic as its own documentation would have it."""
