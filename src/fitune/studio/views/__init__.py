"""The studio's addresses: a module a screen. In: a request. Out: a page, a piece of one, or a redirect."""
