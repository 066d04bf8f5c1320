"""From a prompt to embeddings: vocabulary, tokenizer, CLIP text encoder, conditioning."""
