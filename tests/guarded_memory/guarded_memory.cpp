// Preloaded into a process, puts what posix_memalign gives (torch's tensors, and all memory of the kernels) between
// pages that fault: a block ends where the next page begins, and a freed block faults too.
//
// New memory is filled with ones, which are NaN in every floating type. The bytes before a block, in its first page,
// are a canary that free() looks at. A block of torch's, which asks for 64 bytes, is aligned no more than its size is:
// a kernel may not rely on more, for a tensor may be a slice of another.
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define HANOPS_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr size_t kPage = 4096, kTorchs = 64, kArena = size_t{256} << 30;  // of addresses, of which none is used twice
constexpr int kNew = 0xff, kCanary = 0xa5;

struct Arena {
  char* base;
  size_t* sizes;  // of the block that begins in a page
  std::atomic<size_t> used{kPage};

  Arena()
      : base(reserve(kArena, PROT_NONE)),
        sizes(reinterpret_cast<size_t*>(reserve(kArena / kPage * 8, PROT_READ | PROT_WRITE))) {}

  static char* reserve(size_t bytes, int protection) {
    void* p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fail("no addresses left");
    return static_cast<char*>(p);
  }

  [[noreturn]] static void fail(const char* what) {
    dprintf(STDERR_FILENO, "guarded memory: %s\n", what);
    abort();
  }

  bool holds(const void* p) const { return p >= base && p < base + kArena; }
  size_t& size(const void* p) const { return sizes[(static_cast<const char*>(p) - base) / kPage]; }
};

Arena& arena() {
  static Arena* const it = new Arena;  // outlives every thread
  return *it;
}

std::atomic<long long> blocks{0};

char* first_page(void* p) { return reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(p) & ~(kPage - 1)); }

size_t pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

}  // namespace

HANOPS_EXPORT long long guarded_blocks() { return blocks; }

HANOPS_EXPORT int posix_memalign(void** out, size_t alignment, size_t bytes) {
  static const auto next = reinterpret_cast<int (*)(void**, size_t, size_t)>(dlsym(RTLD_NEXT, "posix_memalign"));
  if (bytes == 0 || alignment > kPage) return next(out, alignment, bytes);
  Arena& a = arena();
  const size_t taken = pages(bytes), begin = a.used.fetch_add(taken + kPage);
  if (begin + taken + kPage > kArena) Arena::fail("no addresses left");
  char* page = a.base + begin;
  if (mprotect(page, taken, PROT_READ | PROT_WRITE) != 0) return ENOMEM;
  char* p = page + taken - bytes;
  if (alignment > kTorchs) p -= (p - page) % alignment;
  std::memset(page, kCanary, taken);
  std::memset(p, kNew, bytes);
  a.size(p) = bytes;
  ++blocks;
  *out = p;
  return 0;
}

HANOPS_EXPORT void free(void* p) {
  static const auto next = reinterpret_cast<void (*)(void*)>(dlsym(RTLD_NEXT, "free"));
  Arena& a = arena();
  if (!a.holds(p)) return next(p);
  const size_t bytes = a.size(p);
  char *page = first_page(p), *end = static_cast<char*>(p) + bytes;
  const auto check = [](const char* from, const char* to, const char* what) {
    for (; from < to; ++from) {
      if (static_cast<unsigned char>(*from) != kCanary) Arena::fail(what);
    }
  };
  check(page, static_cast<char*>(p), "something wrote before a block");
  check(end, reinterpret_cast<char*>(pages(reinterpret_cast<uintptr_t>(end))), "something wrote behind a block");
  const size_t taken = pages(end - page);
  madvise(page, taken, MADV_DONTNEED);
  mprotect(page, taken, PROT_NONE);
}
