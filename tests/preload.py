"""What the fork server imports once for all ranks of all tests."""

import deepspeed
import peft
import transformers

__all__ = ["deepspeed", "peft", "transformers"]
