"""Load and call Hugging Face models, pipelines and tokenizers."""
