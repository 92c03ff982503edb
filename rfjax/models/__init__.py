"""Networks: parameters in, prediction out; their sharding, sizes and FLOPs."""
