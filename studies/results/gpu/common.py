"""Shared by measure.py and train.py: jobs, precision, a trainer whose step is replayed as a CUDA graph."""
import contextlib, functools, json, os, sys, time, warnings
import torch
import torch.nn.functional as F
warnings.filterwarnings("ignore")
from backlink_ray import provenance
from backlink_ray.benchmarks.jobs import job_for, modules_of, random_images
from backlink_ray.data import loader
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import build_method
from backlink_ray.train.trainer import Trainer, gradients

OUT = os.environ["OUT"]  # folder of the results
T0 = time.time()
CUDA = torch.cuda.is_available()
DEV = "cuda" if CUDA else "cpu"

def emit(what, **row):
    row = {"what": what, **row, "date": time.strftime("%Y-%m-%d"), "commit": os.environ.get("COMMIT", ""), "torch": torch.__version__,
           "python": sys.version.split()[0], "device": provenance.hardware(DEV)}
    with open(f"{OUT}/{what}.jsonl", "a") as f:
        f.write(json.dumps(row) + "\n")
    print(round(time.time() - T0, 1), what, {k: (round(v, 4) if isinstance(v, float) else v) for k, v in row.items() if k not in ("what", "date", "commit", "torch", "python", "device")}, flush=True)

def guarded(name, f, *a, **k):
    try:
        return f(*a, **k)
    except Exception as e:
        import traceback; traceback.print_exc()
        emit("errors", name=name, error=f"{type(e).__name__}: {e}"[:300])

@contextlib.contextmanager
def precision(name):
    """fp32: TF32 off. tf32: TF32 in convolutions and products. bf16: autocast, without the weight cache (as graph capture needs)."""
    torch.set_float32_matmul_precision("highest" if name == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = name != "fp32"
    with torch.autocast(DEV, dtype=torch.bfloat16, cache_enabled=False) if name == "bf16" else contextlib.nullcontext():
        yield
    torch.backends.cudnn.allow_tf32 = True

def augment(pixels, augmentation, generator):
    """data.loader.augment with the same draws, indices made on the device."""
    count, channels, height, width = pixels.shape
    pad, dev = augmentation.pad, pixels.device
    offsets = torch.randint(0, 2 * pad + 1, (2, count), generator=generator)
    flips = torch.rand(count, generator=generator) < (0.5 if augmentation.flip else 0.0)
    offsets, flips = offsets.to(dev), flips.to(dev)
    rows = offsets[0, :, None] + torch.arange(height, device=dev)
    forward = torch.arange(width, device=dev).expand(count, width)
    columns = offsets[1, :, None] + torch.where(flips[:, None], forward.flip(1), forward)
    rows, columns = loader._unpad(rows - pad, height, augmentation.mode), loader._unpad(columns - pad, width, augmentation.mode)
    padded = F.pad(pixels, (0, 1, 0, 1))
    index = (rows[:, :, None] * (width + 1) + columns[:, None, :]).view(count, 1, -1)
    return padded.flatten(2).gather(2, index.expand(-1, channels, -1)).view(count, channels, height, width)

def layout(modules, channels_last):
    return [m.to(DEV).to(memory_format=torch.channels_last) if channels_last else m.to(DEV) for m in modules]

class Captured:
    """A Trainer whose step is a CUDA graph: eager for the first steps, replayed afterwards; lr is a tensor on the device."""
    def __init__(self, modules, method, schedule, seed=0, mode="bf16", warm=4):
        self.lr = torch.zeros((), device=DEV)
        self.trainer = Trainer(modules, method, lr=lambda step: self.lr, seed=seed)
        if CUDA:
            for u in self.trainer._updaters:
                g = u._optimizer.param_groups
                u._optimizer = torch.optim.SGD(g[0]["params"], self.lr, 0.9, weight_decay=1e-4, nesterov=True, fused=True)
        self.schedule, self.mode, self.warm, self.steps, self.graph = schedule, mode, warm, 0, None
        self.stream = torch.cuda.Stream() if CUDA else None
        self.losses = None
    def step(self, x, y):
        """Train on one batch; the caller has made the stream wait for x and y."""
        self.lr.fill_(self.schedule(self.steps))
        if self.graph is None and self.steps >= self.warm and CUDA:
            self.x, self.y = x.clone(), y.clone()
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream), precision(self.mode):
                self.out = self.trainer.step(self.x, self.y)
        if self.graph is not None:
            self.x.copy_(x); self.y.copy_(y)
            self.graph.replay()
            self.losses = self.out
        else:
            with precision(self.mode):
                self.losses = self.trainer.step(x, y).clone()
        self.steps += 1
