import numpy as np, time
from rfjax.laws.design import *
from rfjax.laws.budgets import Cost
rng=np.random.default_rng(0)
par=np.array([0.05,np.log(60),.3,np.log(900),.6])
draws=np.tile(par,(30,1)); 
n0,d0=np.log(1e6),np.log(3e4)
for r in draws:
    for k,(i,x) in enumerate(((2,n0),(4,d0))):
        f=np.exp(.2*rng.standard_normal()); new=r[i]*f
        r[i-1]+= (new-r[i])*x; r[i]=new
sizes=np.geomspace(1e5,1e7,7); lengths=np.array([250,500,1000,2000,4000]); batch=32; share=.2
c=[]
for s,n in enumerate(sizes):
    for i in range(len(lengths)):
        for m in range(1,min(i+1,4)+1):
            L=lengths[i-m+1:i+1]; dep=L-np.round(share*L); steps=dep.max()+np.round(share*L).sum()
            c.append(Trunk(size=s,params=n,images=tuple(L*batch),flops=6*n*batch*steps))
budget=6*1e6*32*4000*12
p=Problem(draws=draws,between=.01,within=.005,target=10*budget,cost=Cost())
t=time.time(); info=Information(p,c); d=design(info,budget); print(time.time()-t, len(c))
for x in d.trunks: print(f"{x.params:.3g}", [int(i/batch) for i in x.images], f"{x.flops:.3g}")
print(d.flops/budget, d.half_width); g,said=best_log_grid(info,budget); print(said,g.half_width,g.flops/budget, d.half_width/g.half_width); print(time.time()-t)
for ms in (2,3,4,6):
    d=design(info,budget,most_seeds=ms); print(ms, len(d.trunks), d.half_width, d.half_width/g.half_width, np.bincount([t.size for t in d.trunks]))
