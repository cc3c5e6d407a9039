"""Masks as viewers and planning systems take them: DICOM objects.

They are written for the slices of a series (`data.formats.dicom.series`), with
the extra `clinic`: pydicom, highdicom, contourpy.
"""
