"""Data sets in their published naming, built small in a temporary folder: for every test that needs files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (16, 18, 14)
# The same child was scanned more than once (README of the data).
CHILDREN = [[1, 2], [3], [4, 5], [6, 7, 8], [9, 10, 11], [12], [13], [14], [15], [16], [17], [18], [19, 20, 21],
            [22, 23, 24]]  # fmt: skip


def brain(seed: int, shape: Sequence[int] = SHAPE) -> NDArray[np.float32]:
    """A noisy ellipsoid in [0, 1000] on zeros: every seed another head."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = sum((g / r) ** 2 for g, r in zip(grid, rng.uniform(0.7, 0.9, len(shape)), strict=True))
    image = (radius < 1) * (500 + 300 * np.cos(6 * radius) + 60 * rng.standard_normal(shape))
    return np.clip(image, 0, 1000).astype(np.float32)


def tumour(seed: int, shape: Sequence[int] = SHAPE) -> NDArray[np.uint8]:
    """A label map with a block of ones in the middle third of the last axis."""
    mask = np.zeros(shape, np.uint8)
    third = shape[-1] // 3
    mask[shape[0] // 3 : shape[0] // 2, shape[1] // 3 : shape[1] // 2, third : 2 * third] = 1 + seed % 2
    return mask


def nifti(path: Path, seed: int = 0, array: NDArray[Any] | None = None, shape: Sequence[int] = SHAPE) -> Path:
    """Write a NIfTI (or Analyze, for .img) file with everything above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = brain(seed, shape) if array is None else array
    if path.suffix == ".img":
        nib.save(nib.analyze.AnalyzeImage(array.astype(np.int16), AFFINE), path)
    else:
        stored = array.astype(np.int16) if array.dtype.kind == "f" else array
        nib.save(nib.Nifti1Image(stored, AFFINE), path)
    return path


def png(path: Path, seed: int = 0, size: int = 24, array: NDArray[np.uint8] | None = None) -> Path:
    """Write an 8-bit grey picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (brain(seed, (size, size)) * 0.255).astype(np.uint8) if array is None else array
    Image.fromarray(pixels).save(path, format={".jpg": "JPEG", ".tif": "TIFF"}.get(path.suffix, "PNG"))
    return path


def text(path: Path, content: str) -> Path:
    """Write a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def oasis_png(root: Path, cases: Mapping[str, Sequence[int]] | None = None, slices: int = 3, size: int = 24,
              segs: bool = True) -> Path:  # fmt: skip
    """The course's keras_png_slices_* folders.

    Args:
        root: made.
        cases: train, validate and test to case numbers.
        slices: per case.
        size: of the pictures.
        segs: with the tissue maps.

    Returns:
        `root`.
    """
    for split, numbers in (cases or {"train": [1, 2, 3, 4], "validate": [402, 403], "test": [441, 442]}).items():
        for case in numbers:
            for k in range(slices):
                name = f"{case:03d}_slice_{k}.nii.png"
                png(root / f"keras_png_slices_{split}/case_{name}", 100 * case + k, size)
                if segs:
                    png(root / f"keras_png_slices_seg_{split}/seg_{name}", 0, size)
    return root


def oasis_png_of_children(root: Path, source: Path, slices: int = 6) -> Path:
    """The same layout from real T1 volumes, children whole in one split.

    Args:
        root: made.
        source: folder t1_children of the shared data; its axial axis is the second one, from inferior to superior.
        slices: per case, from the middle of the slab.

    Returns:
        `root`.
    """
    for n, child in enumerate(CHILDREN):
        split = "test" if n % 7 == 5 else "validate" if n % 7 == 3 else "train"
        for case in child:
            volume = np.asarray(nib.load(source / f"i{case}.nii.gz").dataobj, np.float32)
            scaled = np.clip(volume / np.percentile(volume, 99.9), 0, 1) * 255
            middle = volume.shape[1] // 2 - slices // 2
            for k in range(slices):
                frame = np.zeros((256, 256), np.uint8)
                cut = scaled[:, middle + k]  # axes P, S, R: rows run from anterior, columns from left
                top, left = (256 - cut.shape[0]) // 2, (256 - cut.shape[1]) // 2
                frame[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
                png(root / f"keras_png_slices_{split}/case_{case:03d}_slice_{k}.nii.png", array=frame)
    return root


OASIS_TABLE = """ID,M/F,Hand,Age,Educ,SES,MMSE,CDR,eTIV,nWBV,ASF,Delay
OAS1_0001_MR1,F,R,74,2,3,29,0,1344,0.743,1.306,N/A
OAS1_0002_MR1,M,R,55,4,1,29,0.5,1147,0.81,1.531,N/A
OAS1_0003_MR1,F,R,20,,,,,1511,0.83,1.1,N/A
OAS1_0003_MR2,F,R,20,,,,,1511,0.83,1.1,89
OAS1_0009_MR1,M,R,90,,,,2,1511,0.83,1.1,N/A
"""


def oasis_volumes(root: Path, visits: Iterable[str] = ("0001_MR1", "0002_MR1", "0003_MR1", "0003_MR2"),
                  table: str | None = OASIS_TABLE) -> Path:  # fmt: skip
    """OASIS-1 discs: the masked volume of each visit, another of its volumes, and the table."""
    for i, visit in enumerate(visits):
        base = root / f"disc{1 + i % 2}/OAS1_{visit}/PROCESSED/MPRAGE/T88_111"
        nifti(base / f"OAS1_{visit}_mpr_n{3 + i % 2}_anon_111_t88_masked_gfc.img", i)
        nifti(base / f"OAS1_{visit}_mpr_n{3 + i % 2}_anon_111_t88_gfc.img", i)
    if table:
        text(root / "oasis_cross-sectional.csv", table)
    return root


IXI_NAMES = ("IXI002-Guys-0828", "IXI012-HH-1211", "IXI013-HH-1212", "IXI035-IOP-0873", "IXI050-Guys-0711")
IXI_TABLE = """IXI_ID,"SEX_ID (1=m, 2=f)",HEIGHT,WEIGHT,ETHNIC_ID,AGE
2,2,164,58,1,35.80013689
12,1,175,70,1,38.78165640
12,1,175,70,1,38.78165640
13,1,182,70,1,46.71047228
13,1,182,70,1,50.5
35,0,0,0,1,
99,2,160,60,1,61.0
"""


def ixi(root: Path, people: Sequence[str] = IXI_NAMES, contrasts: Sequence[str] = ("T1", "T2"), flat: bool = False,
        table: str | None = IXI_TABLE) -> Path:  # fmt: skip
    """IXI as unpacked; the table has a double row, a contradiction (13), a row without data (35) and none for 50."""
    for contrast in contrasts:
        for i, name in enumerate(people):
            nifti(root / ("" if flat else f"IXI-{contrast}") / f"{name}-{contrast}.nii.gz", i + 10 * len(contrast))
    if table:
        text(root / "IXI.csv", table)
    return root


BRATS_KINDS = {
    2023: "BraTS-GLI-{n:05d}-000/BraTS-GLI-{n:05d}-000-{t1n,t1c,t2w,t2f,seg}.nii.gz",
    2021: "BraTS2021_{n:05d}/BraTS2021_{n:05d}_{t1,t1ce,t2,flair,seg}.nii.gz",
    2020: "MICCAI_BraTS2020_TrainingData/BraTS20_Training_{n:03d}/BraTS20_Training_{n:03d}_{t1,t1ce,t2,flair,seg}.nii",
    2018: "HGG/Brats18_TCIA01_{n:03d}_1/Brats18_TCIA01_{n:03d}_1_{t1,t1ce,t2,flair,seg}.nii.gz",
}


def brats(root: Path, year: int = 2021, cases: Iterable[int] = (1, 2, 3), without_seg: Iterable[int] = ()) -> Path:
    """BraTS by the names of a year; the tumour is in the middle third of the axial slices."""
    head, kinds = BRATS_KINDS[year].rsplit("{", 1)
    kinds, tail = kinds.split("}")
    for n in cases:
        for i, kind in enumerate(kinds.split(",")):
            path = root / f"{head.format(n=n)}{kind}{tail}"
            if kind != "seg":
                nifti(path, 10 * n + i)
            elif n not in without_seg:
                nifti(path, array=tumour(n))
    return root


def brats_2013(root: Path) -> Path:
    """Two patients of 2013 and 2015 with their folders; the .mha files are empty: nothing but names."""
    for i, kind in enumerate(("MR_T1", "MR_T1c", "MR_T2", "MR_Flair")):
        text(root / f"HGG/brats_2013_pat0001_1/VSD.Brain.XX.O.{kind}.5451{i}/VSD.Brain.XX.O.{kind}.5451{i}.mha", "")
        text(root / f"LGG/brats_2013_pat0001_1/VSD.Brain.XX.O.{kind}.5461{i}/VSD.Brain.XX.O.{kind}.5461{i}.mha", "")
    text(root / "HGG/brats_2013_pat0001_1/VSD.Brain_3more.XX.O.OT.54517/VSD.Brain_3more.XX.O.OT.54517.mha", "")
    text(root / "HGG/brats_tcia_pat105_0002/VSD.Brain.XX.O.MR_T1.35536/VSD.Brain.XX.O.MR_T1.35536.mha", "")
    return root


def bids(root: Path, subjects: int = 3) -> Path:
    """A BIDS tree of two sessions with T1w and T2w, functional data, a derivative, participants.tsv."""
    for n in range(1, subjects + 1):
        for session in (1, 2):
            for k, kind in enumerate(("T1w", "T2w")):
                name = f"sub-{n:02d}_ses-{session}_{kind}.nii.gz"
                nifti(root / f"sub-{n:02d}/ses-{session}/anat/{name}", 10 * n + 3 * session + k)
    nifti(root / "sub-01/ses-1/anat/sub-01_ses-1_run-2_T1w.nii.gz", 7)
    nifti(root / "sub-01/ses-1/func/sub-01_ses-1_task-rest_bold.nii.gz", 8)
    nifti(root / "derivatives/bet/sub-01/ses-1/anat/sub-01_ses-1_desc-brain_T1w.nii.gz", 9)
    text(root / "dataset_description.json", "{}")
    text(root / "participants.tsv", "participant_id\tage\tsex\nsub-01\t31\tF\nsub-02\t89+\tmale\nsub-04\tn/a\tn/a\n")
    return root


def pictures(root: Path, classes: Mapping[str, int] | None = None, size: int = 24) -> Path:
    """Class folders of numbered JPEG files without patient names."""
    number = 0
    for name, count in (classes or {"glioma": 12, "none": 8}).items():
        for _ in range(count):
            number += 1
            png(root / f"{name}/{number}.jpg", number, size)
    return root


def dicom(folder: Path, patient: str = "P1", description: str = "T1w MPRAGE", seed: int = 0, modality: str = "MR",
          suffix: str = ".dcm", number: int = 1) -> Path:  # fmt: skip
    """Write one axial series of `SHAPE`, one file per slice.

    Args:
        folder: made; may hold several series.
        patient: PatientID.
        description: SeriesDescription.
        seed: of the voxels.
        modality: "MR", "CT", ...
        suffix: of the file names, "" for names without one.
        number: SeriesNumber.

    Returns:
        `folder`.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    uid = generate_uid(entropy_srcs=[patient, description, str(seed)])
    for k, image in enumerate(np.moveaxis(brain(seed), 2, 0)):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(uid), str(k)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"IM{number}_{k:04d}{suffix}"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        data.PatientID, data.PatientAge, data.PatientSex, data.StudyDate = patient, "045Y", "F", "20200102"
        data.Modality, data.SeriesDescription, data.SeriesInstanceUID = modality, description, uid
        data.SeriesNumber, data.InstanceNumber = number, k + 1
        data.ImagePositionPatient, data.ImageOrientationPatient = [0.0, 0.0, 2.0 * k], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [2.0, 2.0], 2.0
        pixels = np.ascontiguousarray(image.T.astype(np.uint16))
        data.Rows, data.Columns = pixels.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.PixelData = pixels.tobytes()
        data.save_as(path, enforce_file_format=True)
    return folder


def vgg19(path: Path, deepest: str, normalised: bool = True) -> Path:
    """Weights of VGG-19 up to a layer, drawn at random so that features keep their size, in one of the two layouts."""
    import torch

    from mri_synth.networks import vgg19 as network

    draw = torch.Generator().manual_seed(19)
    keys = [str(k) for k in network._NORMALISED] if normalised else [f"features.{k}" for k in network._TORCHVISION]
    values = {"0.weight": torch.eye(3).flip(0)[..., None, None], "0.bias": torch.full((3,), -0.5)} if normalised else {}
    before = 3
    for name, key in zip(network.LAYERS[: network.LAYERS.index(deepest) + 1], keys, strict=False):
        width = network.WIDTHS[network.block(name)]
        values[f"{key}.weight"] = torch.randn(width, before, 3, 3, generator=draw) * (2 / (9 * before)) ** 0.5
        values[f"{key}.bias"] = torch.zeros(width)
        before = width
    torch.save(values, path)
    return path
