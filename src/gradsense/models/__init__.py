"""Text in, decision out: build, tokenize, adapt, save and load small language models."""
