import numpy as np
import torch

from hunyuan_train.one_copy import copy_together


def test_arrays_come_back_as_they_were_whatever_their_dtypes_and_sizes() -> None:
    arrays = [
        np.arange(5, dtype=np.int64),
        np.array([True, False, True]).astype(np.uint8),
        np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
        np.zeros(0, dtype=np.int64),
        np.array([1.5], dtype=np.float64),
    ]
    tensors = copy_together(arrays, torch.device("cpu"))
    assert len({one.untyped_storage().data_ptr() for one in tensors}) == 1
    for array, tensor in zip(arrays, tensors, strict=True):
        assert tensor.dtype == torch.from_numpy(np.empty(0, dtype=array.dtype)).dtype
        assert np.array_equal(tensor.numpy(), array)
    arrays[0][:] = 0
    assert tensors[0].tolist() == [0, 1, 2, 3, 4]


def test_no_array_is_no_tensor() -> None:
    assert copy_together([], torch.device("cpu")) == []
