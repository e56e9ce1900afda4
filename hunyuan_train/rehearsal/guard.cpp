// Lets autograd run on fake CUDA tensors (torch's FakeTensorMode) on a machine without a GPU.
//
// Autograd asks the device for its guard (which stream, how many devices) and its hooks, also where
// tensors have no data. A CPU build has neither for CUDA, and those of a CUDA build ask the driver.
// These answer "one device" and do nothing. The library must be loaded before `import torch`, which
// looks for hooks once; `replace_guard` is called after it, because a CUDA build brings its own.
// torch._C._ensureCUDADeviceGuardSet, which does the same, does nothing in a CPU build.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
using namespace c10;

const Device kDevice(DeviceType::CUDA, 0);

struct PretendedGuard final : public impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device getDevice() const override { return kDevice; }
  Device exchangeDevice(Device) const override { return kDevice; }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, kDevice); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, kDevice); }
  Stream exchangeStream(Stream stream) const noexcept override { return stream; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
};

const PretendedGuard kGuard;
impl::DeviceGuardImplRegistrar registrar(DeviceType::CUDA, &kGuard);
}  // namespace

extern "C" void replace_guard() {
  impl::registerDeviceGuard(DeviceType::CUDA, &kGuard);
}

namespace at {

// The name by which torch asks for them.
struct CUDAHooks final : public CUDAHooksInterface {
  CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void deviceSynchronize(DeviceIndex) const override {}
  // torch 2.11 asks for cuDNN's version before it chooses a kernel of attention. 0: there is none,
  // as `hasCuDNN` says by itself, and the kernel is one of torch's own.
  long versionCuDNN() const override { return 0; }
  long versionRuntimeCuDNN() const override { return 0; }
};

C10_REGISTER_CLASS_WITH_PRIORITY(CUDAHooksRegistry, CUDAHooks, c10::REGISTRY_PREFERRED, CUDAHooks)
}  // namespace at
