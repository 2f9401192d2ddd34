"""What somebody would write by hand, in an afternoon, instead of running relay. Fair code, no straw men."""
