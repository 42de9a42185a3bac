// The runtime's graphs: a launch does the captured copies and fills, and counts the captured kernels.

#include "device.h"

extern "C" {
cudaError_t cudaGraphDestroy(cudaGraph_t h) {
  Graph* g = object<Graph>(h, kGraph);
  if (!g) FAIL(cudaErrorInvalidValue);
  g->magic = kDead, g->kept.clear();
  counters.live_graphs--;
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t h, cudaGraphNode_t* nodes, size_t* n) {
  Graph* g = object<Graph>(h, kGraph);
  if (!g) FAIL(cudaErrorInvalidValue);
  if (nodes)
    for (size_t i = 0; i < *n && i < g->nodes.size(); ++i)
      nodes[i] = reinterpret_cast<cudaGraphNode_t>(g->nodes[i].get());
  *n = g->nodes.size();
  return cudaSuccess;
}
cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t h, cudaGraphNode_t* deps, cudaGraphEdgeData*, size_t* n) {
  auto& from = reinterpret_cast<Node*>(h)->deps;
  if (deps)
    for (size_t i = 0; i < *n && i < from.size(); ++i) deps[i] = reinterpret_cast<cudaGraphNode_t>(from[i]);
  *n = from.size();
  return cudaSuccess;
}
cudaError_t cudaGraphAddNode(cudaGraphNode_t* out, cudaGraph_t h, const cudaGraphNode_t* deps, const cudaGraphEdgeData*,
                             size_t n, cudaGraphNodeParams* p) {
  Graph* g = object<Graph>(h, kGraph);
  if (!g) FAIL(cudaErrorInvalidValue);
  if (p->type != cudaGraphNodeTypeKernel && p->type != cudaGraphNodeTypeEmpty) FAIL(cudaErrorNotSupported);
  auto node = new Node{p->type, {}, nullptr};
  for (size_t i = 0; i < n; ++i) node->deps.push_back(reinterpret_cast<Node*>(deps[i]));
  g->nodes.emplace_back(node);
  *out = reinterpret_cast<cudaGraphNode_t>(node);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* out, cudaGraph_t h, unsigned long long) {
  Graph* g = object<Graph>(h, kGraph);
  if (!g) FAIL(cudaErrorInvalidValue);
  auto exec = new Exec{{kExec, g->device}, {}, g->kept, g->nodes.size(), 0};
  for (auto& node : g->nodes) {
    exec->kernels += node->type == cudaGraphNodeTypeKernel;
    if (node->op) exec->ops.push_back(node->op);
  }
  COUNT(graph_instantiations), COUNT(live_graph_execs);
  *out = reinterpret_cast<cudaGraphExec_t>(exec);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t h, cudaStream_t sh) {
  Exec* exec = object<Exec>(h, kExec);
  Stream* s = stream_of(sh);
  if (!exec || !s) FAIL(cudaErrorInvalidValue);
  if (s->capture) {
    Lock hold(state().lock);
    invalidate(*s->capture);
    FAIL(cudaErrorStreamCaptureUnsupported);
  }
  CHECK(enqueue(sh, cudaGraphNodeTypeGraph, nullptr, __func__));
  for (auto& op : exec->ops) op();
  COUNT(graph_launches);
  counters.graph_kernels_launched += exec->kernels;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t h) {
  CHECK(refuse_unsafe(__func__));
  Exec* exec = object<Exec>(h, kExec);
  if (!exec) FAIL(cudaErrorInvalidValue);
  exec->magic = kDead, exec->ops.clear(), exec->kept.clear();
  counters.live_graph_execs--;
  return cudaSuccess;
}
struct UserObject {
  std::shared_ptr<void> payload;
  unsigned references;
};
cudaError_t cudaUserObjectCreate(cudaUserObject_t* out, void* p, cudaHostFn_t destroy, unsigned references, unsigned) {
  *out = reinterpret_cast<cudaUserObject_t>(
      new UserObject{std::shared_ptr<void>(p, [destroy](void* q) { destroy(q); }), references});
  return cudaSuccess;
}
cudaError_t cudaUserObjectRelease(cudaUserObject_t h, unsigned n) {
  auto o = reinterpret_cast<UserObject*>(h);
  if (o->references < n) FAIL(cudaErrorInvalidValue);
  if (!(o->references -= n)) o->payload.reset();
  return cudaSuccess;
}
cudaError_t cudaGraphRetainUserObject(cudaGraph_t h, cudaUserObject_t oh, unsigned n, unsigned flags) {
  Graph* g = object<Graph>(h, kGraph);
  if (!g) FAIL(cudaErrorInvalidValue);
  g->kept.push_back(reinterpret_cast<UserObject*>(oh)->payload);
  return flags & cudaGraphUserObjectMove ? cudaUserObjectRelease(oh, n) : cudaSuccess;
}
}  // extern "C"
