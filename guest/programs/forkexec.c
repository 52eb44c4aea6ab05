/*
 * Starts a static program N times and waits for it, once with fork and once with vfork.
 *   forkexec [N [PROGRAM [ARGUMENT]]]
 * Without a shell in between, so it measures process creation and nothing else.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void run(int borrow, long count, char **program)
{
	const char *how = borrow ? "vfork" : "fork";
	double from = now();
	for (long i = 0; i < count; i++) {
		int status;
		/* vfork must be called in the frame that goes on to exec, hence no function pointer. */
		pid_t pid = borrow ? vfork() : fork();
		if (pid == 0) {
			execve(program[0], program, NULL);
			_exit(127);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
			printf("%s+exec FAILED: start %ld of %s\n", how, i, program[0]);
			exit(1);
		}
	}
	double seconds = now() - from;
	printf("%s+exec %ld times: %.3f seconds, %.0f us each\n", how, count, seconds, seconds * 1e6 / (double)count);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	static char busybox[] = "/bin/busybox", applet[] = "true";
	char *standard[] = { busybox, applet, NULL };
	long count = argc > 1 ? strtol(argv[1], NULL, 10) : 1000;
	char **program = argc > 2 ? argv + 2 : standard;
	run(0, count, program);
	run(1, count, program);
	return 0;
}
