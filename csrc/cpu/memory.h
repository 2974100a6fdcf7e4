// Memory that Python allocates for kernels.
#pragma once

#include <cstdint>

namespace lstmvid {

// Asks the system to back fresh memory by pages of 2 MB. A fault for each 4 KB of a new buffer costs more than filling
// it: 27 ms of 29 for the packed weights of H = 2048. Advice only: nothing fails where there are no huge pages.
void advise_huge_pages(void* memory, int64_t bytes);

}  // namespace lstmvid
