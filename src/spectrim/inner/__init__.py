"""Steps in the inner product of a layer's inputs: what a change of W costs is tr((W - W') C (W - W')^T), C = E[x x^T].

Plain functions of tensors. C is cols x cols, a diagonal (cols,), a `Moment`, or None; without it, or with a multiple of
the identity, each is the classical step, bit for bit.

    damage      what a change costs                     obs         which entries go; one pass to make up for them
    alternate   mask and values sought together         patterns    2:4 and other k:n patterns, channel permutation
    whiten      low rank, and low rank beside sparse    mean_shift  what a bias can take back
    edge        where noise ends among whitened values
"""
