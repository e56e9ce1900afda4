// Lets autograd run on fake CUDA tensors (torch's FakeTensorMode) in a build of torch without CUDA.
//
// Autograd asks the device for its guard (which stream, how many devices) and its hooks, also where
// tensors have no data. A CPU build has neither for CUDA. These answer "one device" and do nothing.
// The library must be loaded before `import torch`, which looks for hooks once.
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

impl::DeviceGuardImplRegistrar registrar(DeviceType::CUDA, new PretendedGuard());
}  // namespace

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
};

REGISTER_CUDA_HOOKS(CUDAHooks);
}  // namespace at
