"""What people can get wrong."""


class UserError(Exception):
    """Something the user gave cannot be used. The message is one sentence that says what, and what to do."""
