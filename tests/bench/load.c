/* Uses memory in a container.
 *
 *   load take MIB    writes to so much memory, says so, and gives it up when its standard input has ended
 *   load read DIR    reads the files in DIR
 *   load wait        does nothing
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static char buffer[1 << 20];

static void take(size_t size)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		err(1, "mmap");
	memset(memory, 1, size);
	if (write(1, "taken\n", 6) != 6)
		err(1, "write");
	while (read(0, buffer, sizeof buffer) > 0)
		;
}

static void read_all(const char *path)
{
	struct dirent *entry;
	DIR *directory = opendir(path);
	if (!directory)
		err(1, "%s", path);
	while ((entry = readdir(directory))) {
		if (entry->d_name[0] == '.')
			continue;
		int file = openat(dirfd(directory), entry->d_name, O_RDONLY);
		ssize_t n;
		if (file < 0)
			err(1, "%s", entry->d_name);
		while ((n = read(file, buffer, sizeof buffer)) > 0)
			;
		if (n < 0)
			err(1, "%s", entry->d_name);
		close(file);
	}
	closedir(directory);
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "take") == 0)
		take((size_t)atoi(argv[2]) << 20);
	else if (argc == 3 && strcmp(argv[1], "read") == 0)
		read_all(argv[2]);
	else if (argc == 2 && strcmp(argv[1], "wait") == 0)
		pause();
	else
		errx(2, "load take MIB | read DIR | wait");
	return 0;
}
