"""What torch is told of the ops under `torch.ops.hanops`. Importing this package registers them."""

from hanops.backends import missing
from hanops.ops import decompositions, fakes, flops, nested, registration, vmap, without_native

registration.define()
if missing("cpu"):
    without_native.define()
fakes.register()
vmap.register()
nested.register()
flops.register()
decompositions.register()
