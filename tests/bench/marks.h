/* Marks for the benchmark: where a piece of work begins and ends.
 *
 * In a guest CPUID exits to KVM, whose tracepoint shows the leaf and the number of the mark. On a host without one the times do, which
 * are then those of the trace's clock. The lines that programs print at their end name what is between the marks 2 n and 2 n + 1.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MARK_LEAF 0x4d41524b
#define MOST_MARKED 64

static struct { const char *name; double count; uint64_t begin, end; } marked[MOST_MARKED];
static unsigned marks;

static inline uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static inline void mark(unsigned number)
{
	uint32_t a = MARK_LEAF, b, c = number, d;
	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d) : : "memory");
}

static inline void begin_work(const char *name, double count)
{
	if (marks == MOST_MARKED)
		exit(3);
	marked[marks].name = name;
	marked[marks].count = count;
	mark(2 * marks);
	marked[marks].begin = now();
}

static inline void end_work(void)
{
	marked[marks].end = now();
	mark(2 * marks + 1);
	marks++;
}

static inline void print_marks(void)
{
	for (unsigned i = 0; i < marks; i++)
		printf("%.6f %llu %llu %s\n", marked[i].count, (unsigned long long)marked[i].begin, (unsigned long long)marked[i].end, marked[i].name);
	fflush(stdout);
}
