"""Lists that cost the same on page 1,000 as on page 1, filtered and sorted.

``run_list`` holds what a list of runs filters and sorts by, without the documents. Its number is
the time of creation in milliseconds times 2**20, plus a serial number, so that one integer is both
the order of the list and the position of a page. Triggers copy changes from ``runs``, count runs by
condition, and maintain the search index, so that no code path can forget one of them.
"""
