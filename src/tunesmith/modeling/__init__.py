"""Models: loaded, adapted, merged. Needs torch, transformers and peft."""
