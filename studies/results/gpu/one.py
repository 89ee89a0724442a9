"""One of several processes that train at once; started by measure.py."""
from common import *
n, i, B, net, k = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
job = job_for(RunConfig(network=net, num_modules=k, propagation_length=1, alpha=0.5, batch_size=B), random_images(2 * B), DEV)
b = job.batches(torch.device(DEV), job.train); x, y = b.images(0), b.labels(0)
steps = 60 if CUDA else 2
with precision("tf32"):
    t = Trainer(layout(job.modules, True), job.method, 0.01)
    for _ in range(3): t.step(x, y)
    if CUDA: torch.cuda.synchronize()
    open(f"{OUT}/ready-{n}-{i}", "w").write("")
    while sum(os.path.exists(f"{OUT}/ready-{n}-{j}") for j in range(n)) < n: time.sleep(0.005)
    s = time.perf_counter()
    for _ in range(steps): t.step(x, y)
    if CUDA: torch.cuda.synchronize()
    print(steps * B / (time.perf_counter() - s))
