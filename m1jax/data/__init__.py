"""From raw text to rows: fetching, documents, tokenizer, packing, curriculum, loading."""
