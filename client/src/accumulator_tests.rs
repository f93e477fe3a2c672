//! Tables of the rules of what may leave when.
