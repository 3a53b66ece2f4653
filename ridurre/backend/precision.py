"""How exactly float32 numbers are multiplied: accelerators round them first unless told not to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras


def full_precision() -> contextlib.AbstractContextManager[None]:
    """Inside, float32 products are products of float32 numbers, as they are on a CPU.

    Out of the box GPUs round the factors of matrix products and convolutions to TF32 (10 bits of
    mantissa) and TPUs to bfloat16 (7 bits), so that two models of the same function differ by more
    than `ridurre.verify` lets pass. What a user has set is put back at the end. Except for JAX it
    is a setting of the whole process: other threads see it as well.
    """
    scope = {"tensorflow": _tensorflow, "torch": _torch, "jax": _jax}.get(keras.backend.backend())
    return scope() if scope else contextlib.nullcontext()


@contextlib.contextmanager
def _tensorflow() -> Iterator[None]:
    import tensorflow as tf  # noqa: PLC0415 - only the backend in use is loaded

    setting = tf.config.experimental
    before = setting.tensor_float_32_execution_enabled()
    setting.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        setting.enable_tensor_float_32_execution(before)


def _jax() -> contextlib.AbstractContextManager[None]:
    import jax  # noqa: PLC0415 - only the backend in use is loaded

    scope: contextlib.AbstractContextManager[None] = jax.default_matmul_precision("highest")
    return scope


@contextlib.contextmanager
def _torch() -> Iterator[None]:
    import torch  # noqa: PLC0415 - only the backend in use is loaded

    settings = _torch_settings()
    before = [getattr(owner, name) for owner, name, _ in settings]
    for owner, name, exact in settings:
        setattr(owner, name, exact)
    # The older setting of matrix products, which PyTorch holds against the newer ones: it refuses
    # to tell it while a newer one says TF32, and to multiply while the two disagree.
    products = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        for (owner, name, _), value in zip(settings, before, strict=True):
            setattr(owner, name, value)


def _torch_settings() -> list[tuple[Any, str, Any]]:
    """Where PyTorch keeps precisions, and the exact one: by kind of operation from 2.9 on."""
    from torch import backends  # noqa: PLC0415 - only the backend in use is loaded

    cudnn, onednn = backends.cudnn, backends.mkldnn
    if not hasattr(cudnn, "conv"):
        return [(cudnn, "allow_tf32", False)]
    kinds = (backends.cuda.matmul, cudnn.conv, cudnn.rnn, onednn.matmul, onednn.conv, onednn.rnn)
    return [(kind, "fp32_precision", "ieee") for kind in kinds]
