"""Plain configs; they import nothing of lrunet_jax."""
