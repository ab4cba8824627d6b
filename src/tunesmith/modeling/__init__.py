"""Models: loaded, adapted, merged. Needs torch, transformers and peft."""

from tunesmith.modeling.patches import import_bitsandbytes

import_bitsandbytes()
