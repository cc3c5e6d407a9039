"""DICOM series as volumes, read with pydicom where that is installed.

`frames.py` takes from a file what places its slices, `series.py` orders them,
and `reading.py` reads their voxels.
"""
