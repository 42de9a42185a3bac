// The runtime's streams, captures and events. Work is over when a call returns; events take the host's time.
#include <algorithm>
#include <mutex>

#include "device.h"

extern "C" {
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int priority) {
  COUNT(live_streams);
  Lock hold(state().lock);
  *s = reinterpret_cast<cudaStream_t>(new Stream{{kStream, current}, flags, priority, ++state().ids + 16, {}, {}});
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) {
  return cudaStreamCreateWithPriority(s, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithPriority(s, 0, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t h) {
  Lock hold(state().lock);
  Stream* s = stream_of(h);
  if (!s || s->id <= kLegacyStream + 1) FAIL(cudaErrorInvalidResourceHandle);
  if (s->capture) {
    invalidate(*s->capture);
    FAIL(cudaErrorStreamCaptureUnsupported);
  }
  s->magic = kDead;
  counters.live_streams--;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  COUNT(synchronizations);
  return may_query(s, __func__);
}
cudaError_t cudaStreamQuery(cudaStream_t s) { return may_query(s, __func__); }
cudaError_t cudaStreamGetPriority(cudaStream_t h, int* p) {
  Stream* s = stream_of(h);
  if (!s) FAIL(cudaErrorInvalidResourceHandle);
  *p = s->priority;
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void* data) {
  return enqueue(s, cudaGraphNodeTypeHost, [=] { f(data); }, __func__);
}
cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void* data, unsigned) {
  Stream* stream = stream_of(s);
  if (stream && stream->capture) {
    invalidate(*stream->capture);
    FAIL(cudaErrorStreamCaptureUnsupported);
  }
  return enqueue(s, cudaGraphNodeTypeHost, [=] { f(s, cudaSuccess, data); }, __func__);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t h, cudaStreamCaptureMode mode) {
  Stream* s = stream_of(h);
  if (!s) FAIL(cudaErrorInvalidResourceHandle);
  if (s->id == kLegacyStream) FAIL(cudaErrorStreamCaptureUnsupported);
  Lock hold(state().lock);
  if (s->capture) FAIL(cudaErrorIllegalState);
  auto graph = new Graph{{kGraph, current}, {}, {}};
  s->capture = std::make_shared<Capture>(Capture{++state().ids, mode, pthread_self(), s, graph, true, false, {s}});
  s->last.clear();
  state().captures.insert(s->capture);
  ++active_captures, ++own_captures;
  COUNT(live_graphs), COUNT(captures);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t h, cudaGraph_t* out) {
  *out = nullptr;
  Stream* s = stream_of(h);
  if (!s) FAIL(cudaErrorInvalidResourceHandle);
  Lock hold(state().lock);
  auto c = s->capture;
  if (!c) FAIL(cudaErrorIllegalState);
  if (c->mode != cudaStreamCaptureModeRelaxed && !pthread_equal(c->thread, pthread_self()))
    FAIL(cudaErrorStreamCaptureWrongThread);
  if (c->origin != s) {
    invalidate(*c);
    FAIL(cudaErrorStreamCaptureUnmatched);
  }
  std::set<Node*> joined;  // all that the origin's next operation would wait for
  std::vector<Node*> todo = s->last;
  while (!todo.empty()) {
    Node* node = todo.back();
    todo.pop_back();
    if (joined.insert(node).second) todo.insert(todo.end(), node->deps.begin(), node->deps.end());
  }
  bool unjoined = false;
  for (Stream* member : c->streams) {
    for (Node* node : member->last) unjoined = unjoined || !joined.count(node);
    member->capture = nullptr, member->last.clear();
  }
  c->ended = true;
  state().captures.erase(c);
  --active_captures;
  if (pthread_equal(c->thread, pthread_self())) --own_captures;
  if (!c->valid || unjoined) {
    c->graph->magic = kDead;
    counters.live_graphs--;
    FAIL(c->valid ? cudaErrorStreamCaptureUnjoined : cudaErrorStreamCaptureInvalidated);
  }
  counters.last_graph_nodes = c->graph->nodes.size();
  uint64_t kernels = 0;
  for (auto& node : c->graph->nodes) kernels += node->type == cudaGraphNodeTypeKernel;
  counters.last_graph_kernels = kernels;
  *out = reinterpret_cast<cudaGraph_t>(c->graph);
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t h, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges,
                                     size_t* n) {
  *status = cudaStreamCaptureStatusNone;
  Stream* s = stream_of(h);
  if (!s) FAIL(cudaErrorInvalidResourceHandle);
  if (!active_captures.load(std::memory_order_relaxed)) return cudaSuccess;
  Lock hold(state().lock);
  if (s->id == kLegacyStream) {
    for (auto& c : state().captures)
      for (Stream* m : c->streams)
        if (!(m->flags & cudaStreamNonBlocking)) FAIL(cudaErrorStreamCaptureImplicit);
    return cudaSuccess;
  }
  if (!s->capture) return cudaSuccess;
  *status = s->capture->valid ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusInvalidated;
  if (id) *id = s->capture->id;
  if (graph) *graph = reinterpret_cast<cudaGraph_t>(s->capture->graph);
  if (nodes) *nodes = reinterpret_cast<const cudaGraphNode_t*>(s->last.data());
  if (edges) *edges = nullptr;
  if (n) *n = s->last.size();
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
  return cudaStreamGetCaptureInfo(s, status, nullptr, nullptr, nullptr, nullptr, nullptr);
}
cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t h, cudaGraphNode_t* nodes, const cudaGraphEdgeData*,
                                                size_t n, unsigned flags) {
  Stream* s = stream_of(h);
  Lock hold(state().lock);
  if (!s || !s->capture) FAIL(cudaErrorIllegalState);
  if (flags & cudaStreamSetCaptureDependencies) s->last.clear();
  for (size_t i = 0; i < n; ++i) s->last.push_back(reinterpret_cast<Node*>(nodes[i]));
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) {
  COUNT(live_events);
  *e = reinterpret_cast<cudaEvent_t>(new Event{{kEvent, current}, flags});
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t h) {
  Event* e = object<Event>(h, kEvent);
  if (!e) FAIL(cudaErrorInvalidResourceHandle);
  e->magic = kDead;
  counters.live_events--;
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t h, cudaStream_t sh, unsigned flags) {
  Event* e = object<Event>(h, kEvent);
  Stream* s = stream_of(sh);
  if (!e || !s || e->device != s->device) FAIL(cudaErrorInvalidResourceHandle);
  if (flags & cudaEventRecordExternal)
    CHECK(enqueue(sh, cudaGraphNodeTypeEventRecord, [e] { e->time = now(); }, __func__));
  Lock hold(state().lock);
  if (s->capture && !(flags & cudaEventRecordExternal)) {
    if (!s->capture->valid) FAIL(cudaErrorStreamCaptureInvalidated);
    e->capture = s->capture, e->last = s->last;
  } else {
    if (cudaError_t error = break_captures_by_legacy(s)) FAIL(error);
    e->capture = nullptr;
  }
  e->recorded = true, e->time = now();
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return cudaEventRecordWithFlags(e, s, 0); }
cudaError_t cudaStreamWaitEvent(cudaStream_t sh, cudaEvent_t h, unsigned flags) {
  Event* e = object<Event>(h, kEvent);
  Stream* s = stream_of(sh);
  if (!e || !s) FAIL(cudaErrorInvalidResourceHandle);
  if (!e->recorded || (!e->capture && !active_captures.load())) return cudaSuccess;
  Lock hold(state().lock);
  if (flags & cudaEventWaitExternal) return enqueue(sh, cudaGraphNodeTypeWaitEvent, nullptr, __func__);
  if (e->capture && !e->capture->ended && !s->capture) {  // the stream joins the capture
    if (s->id == kLegacyStream) {
      invalidate(*e->capture);
      FAIL(cudaErrorStreamCaptureImplicit);
    }
    s->capture = e->capture, s->last = e->last;
    s->capture->streams.insert(s);
    return cudaSuccess;
  }
  if (s->capture && e->capture != s->capture) {
    bool other = e->capture && !e->capture->ended;
    invalidate(*s->capture);
    if (other) invalidate(*e->capture);
    FAIL(other ? cudaErrorStreamCaptureMerge : cudaErrorStreamCaptureIsolation);
  }
  if (s->capture)
    for (Node* node : e->last)
      if (std::find(s->last.begin(), s->last.end(), node) == s->last.end()) s->last.push_back(node);
  return cudaSuccess;
}
static cudaError_t settled(cudaEvent_t h, const char* where) {
  Event* e = object<Event>(h, kEvent);
  if (!e) return fail(cudaErrorInvalidResourceHandle, where);
  if (e->capture) {
    Lock hold(state().lock);
    if (!e->capture->ended) invalidate(*e->capture);
    return fail(cudaErrorCapturedEvent, where);
  }
  return refuse_unsafe(where);
}
cudaError_t cudaEventQuery(cudaEvent_t e) { return settled(e, __func__); }
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  COUNT(synchronizations);
  return settled(e, __func__);
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t ah, cudaEvent_t bh) {
  Event *a = object<Event>(ah, kEvent), *b = object<Event>(bh, kEvent);
  if (!a || !b || !a->recorded || !b->recorded || ((a->flags | b->flags) & cudaEventDisableTiming))
    FAIL(cudaErrorInvalidResourceHandle);
  if (a->capture || b->capture) FAIL(cudaErrorCapturedEvent);
  *ms = (double(b->time) - double(a->time)) * 1e-6;
  return cudaSuccess;
}
}  // extern "C"
