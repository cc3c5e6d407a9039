"""Two time points of one patient: registered, matched, told.

`registration` needs the extra `followup`, SimpleITK; the rest does not.
"""
