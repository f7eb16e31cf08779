"""Effects of wrappers on a cell's parameters, gate by gate: `prepare` of a naive `Reference`."""


def _per_gate(xp, params, matrix, gates):
    """Return params with w_s[:, g] = matrix(g)."""
    return params._replace(w_s=xp.stack([matrix(g) for g in range(gates)], 1))


def low_rank(xp, p):
    """W = u v."""
    return _per_gate(xp, p, lambda g: p.w_s.u[:, g] @ p.w_s.v[:, g], p.w_s.u.shape[1])


def orthogonal(xp, p):
    """Helfrich, Willmott and Ye (2018): the two factors of the Cayley transform commute."""
    a = p.w_s.a
    one = xp.eye(a.shape[0])

    def cayley(g):
        skew = a[:, g] - a[:, g].T
        return (one - skew) @ xp.linalg.inv(one + skew)

    return _per_gate(xp, p, cayley, a.shape[1])


def weight_norm(xp, p):
    """Salimans and Kingma (2016), equation 2, for each unit of each gate."""
    g, v = p.w_s

    def normalised(k):
        columns = [g[k, j] * v[:, k, j] / xp.sqrt(v[:, k, j] @ v[:, k, j]) for j in range(len(v))]
        return xp.stack(columns, 1)

    return _per_gate(xp, p, normalised, v.shape[1])


def spectral_norm(xp, p):
    """Miyato et al. (2018): sigma_max^2 is the largest eigenvalue of W^T W."""
    w = p.w_s

    def normalised(g):
        return w[:, g] / xp.sqrt(xp.linalg.eigh(w[:, g].T @ w[:, g])[0][-1])

    return _per_gate(xp, p, normalised, w.shape[1])


def multi_head(xp, p):
    """A dense matrix with the heads' blocks on its diagonal and zeros elsewhere."""
    heads, units, gates, _ = p.w_s.shape

    def dense(g):
        nothing = xp.zeros((units, units))
        rows = [
            xp.concatenate([p.w_s[k, :, g] if j == k else nothing for j in range(heads)], 1)
            for k in range(heads)
        ]
        return xp.concatenate(rows, 0)

    return _per_gate(xp, p, dense, gates)


def learned_state(xp, p):
    """The start is an argument of its own; the rest is the inner cell's."""
    return p.cell
