"""The one place for masks, rotary embeddings, caches and the attention arithmetic."""
