"""Captions from a server: any endpoint that speaks OpenAI's chat completions."""
