"""Downloads that arrive whole or not at all.

A download grows in ``<name>.part``, beside a small ``<name>.part.json`` that says what it is a part of. Only when its
length and hash are proven does it get its final name. A cut connection, an ended process or a crashed machine leave a
part that the next try goes on from; what is damaged is thrown away and fetched again.
"""
