// Finds the largest magnitude of a matrix with the kernel `amax`, from C++ by include/block_scaled.h, and compares it
// with the host's. Needs a GPU and a pack:
//
//     g++ -std=c++17 -Iinclude examples/amax.cpp -o amax -ldl -lm && ./amax artifacts
//
// Memory and copies are the program's own affair; here they are the driver's, too.
#define BLOCK_SCALED_IMPLEMENTATION
#include "block_scaled.h"

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int64_t kRows = 1000, kColumns = 512, kShares = 512;

// An error of the header as an exception.
void check(bs_code code, const bs_error &error) {
    if (code != BS_OK) throw std::runtime_error(error.message);
}

// What of the driver the program calls itself, with the primary context of device 0 current.
class Driver {
  public:
    Driver() : library_(dlopen("libcuda.so.1", RTLD_NOW)) {
        void *context = nullptr;
        if (!library_) throw std::runtime_error("no CUDA driver");
        succeed(call<int (*)(void **, int)>("cuDevicePrimaryCtxRetain")(&context, 0));
        succeed(call<int (*)(void *)>("cuCtxSetCurrent")(context));
    }

    uint64_t upload(const std::vector<float> &values) {
        uint64_t address = 0;
        const size_t bytes = values.size() * sizeof(float);
        succeed(call<int (*)(uint64_t *, size_t)>("cuMemAlloc_v2")(&address, bytes));
        succeed(call<int (*)(uint64_t, const void *, size_t)>("cuMemcpyHtoD_v2")(address, values.data(), bytes));
        return address;
    }

    // Waits for what is queued on the default stream.
    std::vector<float> download(uint64_t address, size_t count) {
        std::vector<float> values(count);
        succeed(call<int (*)(void *, uint64_t, size_t)>("cuMemcpyDtoH_v2")(values.data(), address,
                                                                           count * sizeof(float)));
        return values;
    }

  private:
    template <typename Function>
    Function call(const char *name) {
        void *found = dlsym(library_, name);
        if (!found) throw std::runtime_error(std::string("the driver has no ") + name);
        return reinterpret_cast<Function>(found);
    }

    static void succeed(int status) {
        if (status) throw std::runtime_error("the driver answers " + std::to_string(status));
    }

    void *library_;
};

int run(const char *directory) {
    bs_error error;
    bs_pack *opened = nullptr;
    bs_device *found = nullptr;
    check(bs_pack_open(directory, &opened, &error), error);
    const std::unique_ptr<bs_pack, decltype(&bs_pack_close)> pack(opened, bs_pack_close);
    const bs_code code = bs_device_open(0, &found, &error);
    if (code == BS_ERROR_NO_DRIVER) {
        std::printf("This example needs a GPU: %s\n", error.message);
        return 2;
    }
    check(code, error);
    const std::unique_ptr<bs_device, decltype(&bs_device_close)> device(found, bs_device_close);

    std::vector<float> x(kRows * kColumns);
    std::mt19937 random{std::random_device{}()};
    std::normal_distribution<float> normal;
    std::generate(x.begin(), x.end(), [&] { return normal(random); });
    float expected = 0;
    for (const float value : x) expected = std::max(expected, std::fabs(value));

    Driver driver;
    const uint64_t values = driver.upload(x), partial = driver.upload(std::vector<float>(kShares, NAN));
    const int64_t shape[] = {kRows, kColumns}, shares[] = {kShares};
    const bs_value call[] = {bs_buffer("x", BS_F32, values, 2, shape),
                             bs_buffer("partial", BS_F32, partial, 1, shares)};
    bs_plan *made = nullptr;
    check(bs_plan_make(pack.get(), device.get(), "amax", nullptr, call, 2, nullptr, &made, &error), error);
    const std::unique_ptr<bs_plan, decltype(&bs_plan_close)> plan(made, bs_plan_close);
    check(bs_plan_launch(plan.get(), nullptr, &error), error);

    const std::vector<float> found_shares = driver.download(partial, kShares);
    float largest = 0;
    for (const float share : found_shares) largest = share <= largest ? largest : share;  // a NaN stays
    const bs_launch_info *info = bs_plan_info(plan.get());
    std::printf("%s/%s for sm_%s: %g, on the host %g\n", info->kernel, info->variant, info->arch,
                static_cast<double>(largest), static_cast<double>(expected));
    return largest == expected ? 0 : 1;
}

}  // namespace

int main(int count, char **arguments) {
    try {
        return run(count > 1 ? arguments[1] : "artifacts");
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
