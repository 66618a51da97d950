"""Compiled programs, kept from one process to the next."""

import jax
import platformdirs


def keep_compiled_programs() -> None:
    """Makes JAX keep compiled programs in the user's cache.

    A directory that JAX has been given already, by `JAX_COMPILATION_CACHE_DIR` or
    `jax.config`, stays; `JAX_ENABLE_COMPILATION_CACHE=false` turns all of it off.
    """
    # JAX adds its settings as attributes when it is imported; type checkers see none.
    given = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if given is None:
        directory = platformdirs.user_cache_path("lrunet_jax") / "programs"
        jax.config.update("jax_compilation_cache_dir", str(directory))
