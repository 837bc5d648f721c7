"""Text for language models: named corpora, the tokenizer they share, and packed blocks of tokens."""
