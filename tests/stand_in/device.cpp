// A device for PyTorch with memory of its own, on any machine: what a GPU's code paths are
// tested with where there is no GPU.
//
// Its memory is the machine's, but PyTorch does not know: tensors have to be moved there
// and back, and an operation between them and the CPU's is refused, as on a GPU. What
// operations compute is left to the CPU. What the CPU takes and a GPU's kernels do not is
// refused, too, where it is known.

#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/ScopeExit.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

namespace {

constexpr auto TYPE = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(TYPE, 0);

std::atomic<int64_t> bytes_sent{0};   // from the CPU's memory to the device's
std::atomic<int64_t> waits{0};        // of the CPU for what the device has to do
thread_local bool computing = false;  // on the CPU: what is moved for that does not count

// --- the device: memory, one queue, no generator of its own

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* memory = size ? std::aligned_alloc(64, (size + 63) / 64 * 64) : nullptr;
    return {memory, memory, &std::free, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t size) const override {
    std::memcpy(to, from, size);
  }
};
Allocator allocator;
REGISTER_ALLOCATOR(TYPE, &allocator);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
};
Hooks hooks;
const bool registered = (at::RegisterPrivateUse1HooksInterface(&hooks), true);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = TYPE;
  static c10::Stream queue() { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::DeviceType type() const override { return TYPE; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return queue(); }
  c10::Stream getDefaultStream(c10::Device) const override { return queue(); }
  c10::Stream exchangeStream(c10::Stream) const override { return queue(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// --- tensors, and the way between both memories

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> type,
                 std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator,
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   type.value_or(at::kFloat), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                         std::optional<at::ScalarType> type, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &allocator,
      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), type.value_or(at::kFloat));
}

// The same memory as a tensor of the CPU's.
at::Tensor seen(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.device().is_cpu()) return tensor;
  auto storage = tensor.storage();
  return at::from_blob(
      storage.mutable_data(), tensor.sizes(), tensor.strides(), tensor.storage_offset(),
      [storage](void*) {}, at::TensorOptions(tensor.scalar_type()), at::kCPU);
}

std::optional<at::Tensor> seen(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional(seen(*tensor)) : tensor;
}

at::Tensor moved(const at::Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  auto there = at::empty_strided(tensor.sizes(), tensor.strides(),
                                 tensor.options().device(DEVICE));
  seen(there).copy_(tensor);
  return there;
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  const auto crosses = from.device().is_cpu() || to.device().is_cpu();
  if (from.device().is_cpu() && !computing) bytes_sent += from.nbytes();
  if (crosses && !computing && !non_blocking) waits++;
  seen(to).copy_(seen(from));
  return to;
}

at::Scalar value_of(const at::Tensor& tensor) {
  waits++;
  return seen(tensor).item();
}

const at::Tensor& resize(const at::Tensor& tensor, c10::SymIntArrayRef size,
                         std::optional<at::MemoryFormat>) {
  auto wanted = C10_AS_INTARRAYREF_SLOW(size);
  if (tensor.sizes() == wanted) return tensor;
  auto* held = tensor.unsafeGetTensorImpl();
  auto bytes = c10::multiply_integers(wanted) * tensor.element_size();
  auto& storage = held->unsafe_storage();
  if (storage.nbytes() < static_cast<size_t>(bytes)) {
    storage.set_data_ptr(allocator.allocate(bytes));
    storage.set_nbytes(bytes);
  }
  held->set_sizes_contiguous(wanted);
  return tensor;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  seen(to).copy_(seen(from));
  return to;
}

// --- operations

// A single number of the CPU's may take part in what is done with each value, as on a GPU.
const std::set<std::string> TAKE_NUMBERS = {
    "aten::add", "aten::add_", "aten::sub", "aten::sub_", "aten::mul", "aten::mul_",
    "aten::div", "aten::div_", "aten::_foreach_mul_"};

void refuse_cpu(const at::Tensor& tensor, const std::string& operation) {
  const auto number =
      tensor.defined() && tensor.dim() == 0 &&
      TAKE_NUMBERS.count(operation.substr(0, operation.find('.')));
  TORCH_CHECK(!tensor.defined() || !tensor.device().is_cpu() || number, operation,
              ": a tensor of the CPU's among those of the device");
}

// CUDA's fused optimisers walk parameters, gradients and moments by one address.
void refuse_unlike(const std::vector<std::vector<at::Tensor>>& lists,
                   const std::string& operation) {
  for (const auto& list : lists)
    for (size_t i = 0; i < list.size() && i < lists[0].size(); i++) {
      const auto &parameter = lists[0][i], &other = list[i];
      TORCH_CHECK(!other.device().is_cpu(), operation, ": a tensor of the CPU's");
      if (other.dim() == 0 && parameter.dim() != 0) continue;  // a count of steps
      TORCH_CHECK(other.strides() == parameter.strides() &&
                      other.is_non_overlapping_and_dense() &&
                      other.scalar_type() == parameter.scalar_type(),
                  operation, ": a tensor that does not lie as its parameter does");
    }
}

void on_cpu(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  const auto name = toString(operation.operator_name());
  const auto takes_index = name.rfind("aten::index.", 0) == 0;  // on either device
  std::vector<std::vector<at::Tensor>> lists;
  for (const auto& given : torch::jit::last(stack, operation.schema().arguments().size())) {
    if (given.isTensor()) refuse_cpu(given.toTensor(), name);
    if (given.isOptionalTensorList() && !takes_index)
      for (const at::Tensor& one : given.toTensorVector()) refuse_cpu(one, name);
    if (!given.isTensorList()) continue;
    lists.push_back(given.toTensorVector());
    for (const auto& one : lists.back()) refuse_cpu(one, name);
  }
  if (name.rfind("aten::_fused_", 0) == 0) refuse_unlike(lists, name);
  const auto restored = c10::make_scope_exit([outer = computing] { computing = outer; });
  computing = true;
  at::native::cpu_fallback(operation, stack, /*error_on_views=*/false);
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef output_padding, int64_t groups) {
  for (const auto& one : {input, weight, bias.value_or(at::Tensor())})
    refuse_cpu(one, "convolution");
  return moved(at::convolution(seen(input), seen(weight), seen(bias), stride, padding,
                               dilation, transposed, output_padding, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
    bool transposed, at::IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> asked) {
  for (const auto& one : {gradient, input, weight}) refuse_cpu(one, "convolution");
  const std::vector<int64_t> bias = {weight.size(0)};
  auto [of_input, of_weight, of_bias] = at::convolution_backward(
      seen(gradient), seen(input), seen(weight), bias, stride, padding, dilation,
      transposed, output_padding, groups, asked);
  return {moved(of_input), moved(of_weight), moved(of_bias)};
}

// Its statistics change in place, which its schema does not say.
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm(
    const at::Tensor& input, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& mean,
    const std::optional<at::Tensor>& variance, bool training, double momentum, double eps) {
  auto [output, kept_mean, kept_factor] =
      at::native_batch_norm(seen(input), seen(weight), seen(bias), seen(mean),
                            seen(variance), training, momentum, eps);
  return {moved(output), moved(kept_mean), moved(kept_factor)};
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("resize_", &resize);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &value_of);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  m.impl("native_batch_norm", &batch_norm);
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(cross_entropy_loss, fp32)
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("bytes_sent", [] { return bytes_sent.load(); });
  m.def("waits", [] { return waits.load(); });
}
