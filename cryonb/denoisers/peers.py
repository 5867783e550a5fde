"""Other people's denoisers, called as their authors mean them: BM3D, ASPIRE's CWF, Topaz.

They come with the extra ``pip install 'cryonb[peers]'``. Each is a function of noisy images
(n, y, x) and the standard deviation of their white noise, and returns (n, y, x) in the same unit.
Each raises ImportError without its package, and ValueError for a sigma that is not positive and
for images that are no stack or not finite. ASPIRE and Topaz are under GPL-3.0; BM3D is for
non-commercial use only.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.util import find_spec

import torch

from cryonb.denoisers.baselines import check_stack

# What has to be there for each; Topaz imports setuptools' pkg_resources and does not ask for it.
MODULES = {"bm3d": ("bm3d",), "cwf": ("aspire",), "topaz": ("topaz", "pkg_resources")}


def missing(name: str) -> str | None:
    """Say what to install for the denoiser "bm3d", "cwf" or "topaz"; None if it is all there."""
    there = all(find_spec(module) for module in MODULES[name])
    return None if there else "not installed: pip install 'cryonb[peers]'"


def _check(name: str, noisy: torch.Tensor, sigma: float, square: bool = False) -> None:
    if problem := missing(name):
        raise ImportError(problem)
    check_stack(noisy, sigma, square)


@functools.cache
def _say_once(text: str) -> None:
    print(text)


def bm3d(noisy: torch.Tensor, sigma: float) -> torch.Tensor:
    """Denoise by BM3D, image by image, not clipped. Prints its licence at the first call.

    Dabov et al. 2007, IEEE Trans. Image Process. 16, 2080-2095; Mäkinen et al. 2020, 29,
    8339-8354. The package makes itself free of the unit.

    Its default profile, "np". At SNR 0.1 that for strong noise, "vn", gives the same PSNR (23.0 dB,
    64 validation images of the embedded channel, 64 px), "high" 1.0 dB less (24 images); 0.8 s of
    one core an image.
    """
    _check("bm3d", noisy, sigma)
    import bm3d as package

    _say_once("bm3d: (c) Tampere University, for non-commercial use only")
    settings = package.BM3DProfile()
    settings.num_threads = 1  # more of them add up in another order each time
    images = noisy.double().numpy()
    clean = [torch.from_numpy(package.bm3d(image, sigma, profile=settings)) for image in images]
    return torch.stack(clean).to(noisy.dtype)


@contextlib.contextmanager
def _restrained() -> Iterator[None]:
    """Undo what importing ASPIRE does besides: a folder "logs", the root logger taken over, other
    loggers switched off, and any uncaught exception made to run pip and write a file."""
    hook, root = sys.excepthook, logging.getLogger()
    handlers, level, known = root.handlers[:], root.level, root.manager.loggerDict.values()
    enabled = [x for x in known if isinstance(x, logging.Logger) and not x.disabled]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
                yield
        finally:
            for handler in set(root.handlers) - set(handlers):
                handler.close()
            sys.excepthook, root.handlers[:] = hook, handlers
            root.setLevel(level)
            logging.getLogger("aspire").setLevel(logging.ERROR)
            for logger in enabled:
                logger.disabled = False


def cwf(noisy: torch.Tensor, sigma: float) -> torch.Tensor:
    """Denoise square images by ASPIRE's covariance Wiener filter, estimated from this very stack.

    Fourier-Bessel basis (FFB), no CTF, white noise of the given variance. Bhamre, Zhang and Singer
    2016, J. Struct. Biol. 195, 72-81. Give it a thousand images or more to learn from. ASPIRE
    neither scales nor shifts them, but its basis ends at the inscribed circle; the corners become
    the mean of the stack out there. At SNR 0.1 it is 0.14 dB below the best linear filter (24.3 dB,
    1024 images of the embedded channel, 64 px), 16 ms an image.
    """
    denoiser, ground = cwf_denoiser(noisy, sigma)
    clean = denoiser.denoise[:].asnumpy()
    return torch.tensor(clean, dtype=noisy.dtype) + ground


def cwf_denoiser(noisy: torch.Tensor, sigma: float):
    """ASPIRE's DenoiserCov2D for one stack, which the first use of ``denoise[rows]`` fits.

    The second result is the corners' mean: taken away before, it belongs to what comes out.
    """
    _check("cwf", noisy, sigma, square=True)
    n = noisy.shape[-1]
    with contextlib.nullcontext() if "aspire" in sys.modules else _restrained():
        from aspire.basis import FFBBasis2D
        from aspire.denoising import DenoiserCov2D
        from aspire.source import ArrayImageSource
    at = torch.arange(n) - n // 2
    ground = noisy[:, at**2 + at[:, None] ** 2 > (n / 2) ** 2].mean()
    images = (noisy - ground).float().numpy()
    source = ArrayImageSource(images, pixel_size=1.0)  # without a CTF any pixel size will do
    basis = FFBBasis2D((n, n), dtype=images.dtype)
    return DenoiserCov2D(source, basis, var_noise=sigma**2), ground


def topaz(noisy: torch.Tensor, sigma: float, sign: int = 1) -> torch.Tensor:
    """Denoise by the pretrained U-Net of Topaz-Denoise, each image normalised on its own.

    Bepler et al. 2020, Nature Communications 11, 5208. Trained on micrographs, whose particles are
    dark; with ``sign=-1`` it is shown the images in reversed contrast, and its output is turned
    back. `sigma` is not used. What it returns is not to scale: see `affine_fit`.
    At SNR 0.1 (embedded channel, 64 px) 1 gives 22.1 dB and -1 21.7 dB; 50 to 100 ms an
    image.
    """
    _check("topaz", noisy, sigma)
    deviation, mean = torch.std_mean(noisy.float(), (1, 2), keepdim=True)
    if not (deviation > 0).all():
        raise ValueError("an image is constant and cannot be normalised: leave it out.")
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # pkg_resources is deprecated
        from topaz.denoise import Denoise

        model = Denoise("unet", use_cuda=False)
    images = sign * (noisy.float() - mean) / deviation
    clean = [torch.from_numpy(model.denoise(x)).view(x.shape) for x in images.split(32)]
    return (sign * deviation * torch.cat(clean) + mean).to(noisy.dtype)


def affine_fit(output: torch.Tensor, clean: torch.Tensor) -> tuple[float, float]:
    """Scale and offset, one pair for a stack, that bring `output` nearest to `clean` (n, y, x).

    By least squares; fit them on validation images. ValueError if `output` is constant.
    """
    x, y = output.double(), clean.double()
    if x.min() == x.max():
        raise ValueError("the output is constant: there is no scale to fit.")
    centred = x - x.mean()
    scale = (centred * y).sum() / centred.square().sum()
    return float(scale), float(y.mean() - scale * x.mean())


def topaz_to_scale(given, *, sigma: float, sign: int, noisy, clean) -> torch.Tensor:
    """Denoise `given` by `topaz`, at the scale and offset that suit validation images best."""
    scale, offset = affine_fit(topaz(noisy, sigma, sign), clean)
    return scale * topaz(given, sigma, sign) + offset
