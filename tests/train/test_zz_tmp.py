import pytest
@pytest.mark.parametrize(("hook","step"),[("on_validation_batch_end",3),("on_train_batch_end",6),("on_validation_batch_end",8)])
def test_d(zoo, same_checkpoints, hook, step):
    zoo.run("run_dir=whole"); zoo.run("run_dir=cut", callbacks=[zoo.kill(hook, step)]); zoo.run("resume=cut")
    for n in ("last.ckpt","best.ckpt"):
        print(n); print("\n".join(same_checkpoints(zoo.checkpoint("whole", n), zoo.checkpoint("cut", n))))
    a,b=zoo.scalars("whole"),zoo.scalars("cut")
    for t in a:
        if a[t]!=b.get(t): print(t,a[t],b.get(t))
