/* A fixed amount of work for the CPU alone: no system calls, no faults. Shows what pure user code costs. spin [MILLIONS] */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv)
{
	uint64_t rounds = (argc > 1 ? strtoull(argv[1], NULL, 10) : 100) * 1000000;
	uint64_t x = 88172645463325252ull;
	struct timespec from, to;
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (uint64_t i = 0; i < rounds; i++) {
		x ^= x << 13; /* xorshift: each step needs the one before, so nothing can be skipped */
		x ^= x >> 7;
		x ^= x << 17;
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	double seconds = (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9;
	printf("spin %llu million rounds result %016llx\nspin %.3f seconds\n", (unsigned long long)(rounds / 1000000), (unsigned long long)x, seconds);
	return 0;
}
