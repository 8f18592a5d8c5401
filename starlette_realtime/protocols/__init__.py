"""Pure codecs: bytes in, words out. No I/O."""
