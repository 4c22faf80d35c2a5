"""What every package's tests share."""

# Before pytest takes the folder `kit/`, which holds `kit/tests`, for a namespace package of that name.
import kit  # noqa: F401
